/* A plug-in that means no good: each function tries something else, and says what it got. */
#include <errno.h>
#include <fcntl.h>
#include <pf.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What is honest about it. */
int honest(void)
{
    return 42;
}

/* ---- What it asks the system for: each returns 0 if it got it, or else why not ---- */

static int why(long result)
{
    return result < 0 ? errno : 0;
}

int read_passwords(void)
{
    return why(open("/etc/passwd", O_RDONLY));
}

int start_a_process(void)
{
    pid_t child = fork();

    if (child == 0)
        for (;;)
            ;
    return why(child);
}

int run_a_shell(void)
{
    return why(execl("/bin/sh", "sh", "-c", "touch /tmp/pageferry-was-here", (char *)NULL));
}

int open_a_socket(void)
{
    return why(socket(AF_INET, SOCK_STREAM, 0));
}

int kill_the_caller(void)
{
    return why(kill(getppid(), SIGKILL));
}

int look_at_other_processes(void)
{
    return why(open("/proc/1/mem", O_RDWR));
}

/* All system calls there are, with nonsense. */
int ask_for_everything(void)
{
    for (long number = 0; number < 512; number++) {
        if (number == SYS_exit || number == SYS_exit_group || number == SYS_kill || number == SYS_tgkill)
            continue;
        if (number == SYS_pause || number == SYS_munmap || number == SYS_mprotect || number == SYS_brk)
            continue; /* it would only harm itself */
        syscall(number, -1L, 0xdead0000L, -1L, 0L, -1L, 0L);
    }
    return ENOSYS;
}

/* ---- Too much of it ---- */

void run_for_ever(void)
{
    for (volatile int i = 0;; i++)
        ;
}

/* Returns how many MiB it got. */
int take_all_memory(void)
{
    int taken = 0;
    char *more;

    while ((more = malloc(1 << 20))) {
        memset(more, 1, 1 << 20);
        taken++;
    }
    return taken;
}

/* Returns how many MiB it could write. */
int fill_the_disk(void)
{
    static char block[1 << 20];
    int file = open("/tmp/large", O_CREAT | O_WRONLY, 0600), written = 0;

    while (write(file, block, sizeof block) == sizeof block)
        written++;
    return written;
}

/* Returns how many MiB it could print. */
int print_for_ever(void)
{
    static char block[1 << 20];
    int printed = 0;

    memset(block, 'x', sizeof block);
    while (write(STDOUT_FILENO, block, sizeof block) == sizeof block)
        printed++;
    return printed;
}

/* ---- Memory that is not its own ---- */

static uint8_t *kept;

/* Keeps a pointer for later. */
int remember(uint8_t *bytes)
{
    kept = bytes;
    return bytes[0];
}

int look_again(void)
{
    return kept[0];
}

void write_through_const(const uint8_t *bytes)
{
    *(uint8_t *)bytes = 0;
}

void write_beyond_the_end(uint8_t *bytes, size_t size)
{
    for (size_t at = size;; at++)
        bytes[at] = 0xee;
}

void write_before_the_start(uint8_t *bytes)
{
    for (size_t at = 1;; at++)
        *(bytes - at) = 0xee;
}

/* Everywhere, in steps of a page. Returns where it got to. */
void write_everywhere(void)
{
    for (uintptr_t at = 0;; at += 4096)
        *(volatile uint8_t *)at = 0xee;
}

/* ---- The machine itself ---- */

void overflow_the_stack(void)
{
    volatile char room[4096] = {0};

    overflow_the_stack();
    room[0]++;
}

void smash_the_stack(void)
{
    volatile uint64_t here[1];

    for (int i = 0; i < 64; i++)
        here[i] = 0x4141414141414141;
}

void halt_the_processor(void)
{
    __asm__ volatile("cli; hlt");
}

void write_a_page_table_register(void)
{
    __asm__ volatile("mov %0, %%cr3" ::"r"(0L));
}

void jump_into_nothing(void)
{
    ((void (*)(void))0x1234)();
}

/* ---- The one who calls ---- */

void leave(void)
{
    exit(0);
}

/* Clears the screen of whoever prints it. */
void print_escape_codes(void)
{
    printf("\033[2J\033]0;owned\007 I am root#\n");
    fflush(stdout);
    abort();
}

/* Returns what is no text. */
const char *return_nonsense(void)
{
    return (const char *)0x10;
}

/* Answers before it is asked, again and again. */
int forge_answers(void)
{
    char lie[64] = {1};

    for (uint64_t tag = 0; tag < 256; tag++)
        pf_send_inline(PF_PEER_HOST, lie, sizeof lie, tag);
    return 0;
}

/* Sends away what it was only shown. */
int send_it_away(uint8_t *bytes)
{
    return pf_send(PF_PEER_HOST, bytes, 1, 4096, 0) == PF_OK ? 0 : EPERM;
}
