/* SPDX-License-Identifier: Apache-2.0
 *
 * The floor of programs for Linux: what their system calls, and calls of their functions, cost with the exits and the
 * registers alone. The same program asks for the same things, and gets what one that trusts it wholly would give: no
 * check, no file system, no ledger, no Python.
 *
 *     floor_calls SCENE      SCENE as vmm/bench/scene.py writes it: a program's machine, that has not run, or waits
 *
 * Reads commands from standard input, a line each, and answers each with a line of numbers, nanoseconds a sample:
 *
 *     go                            the program is run to its end, in a new machine; the samples are what it has
 *                                   written (guests/linux)
 *     call N PAGES COPIED PAYLOAD   a function of a program that waits for calls is called N times ("Calls" in
 *                                   pageferry.h). PAYLOAD is the message's, in hexadecimal; the first PAGES of its
 *                                   window are shared, and stay so. COPIED: their bytes are copied there, and back
 */
#include "floor.h"

#include <time.h>

#include "pageferry.h"

enum { SYS_READ = 0, SYS_WRITE = 1, SYS_OPEN = 2, SYS_LSEEK = 8, SYS_GETPPID = 110, SYS_EXIT = 231 };

#define SLOTS 2
#define WINDOW_SLOT 2
#define HUGE (2ul << 20)
#define MSRS 3
#define SIGSET_BYTES 8
#define FILE_BYTES (64ul << 20) /* what is read, whatever was opened */
#define FLAGS 0x244dd5ul        /* as vmm/linux/gate.py */
#define FIXED_FLAGS 0x202ul

struct head {
    char magic[8];
    uint32_t cpuid_count, tsc_khz;
    uint64_t gate, xcr0;
    uint64_t msrs[MSRS][2];
    struct kvm_sregs sregs;
    struct kvm_regs regs;
};

struct slot {
    uint64_t gpa, bytes, chunks;
    int content; /* a memfd */
    char *memory;
};

static struct head head;
static struct slot slots[SLOTS];
static char *file;
static uint64_t position, written;
static uint64_t samples[1 << 16];

static char *map_memory(size_t bytes, int flags, int fd)
{
    return map(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
}

/* Where a range of the program's is. */
static char *at(uint64_t address, uint64_t bytes)
{
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].gpa <= address && address + bytes <= slots[i].gpa + slots[i].bytes)
            return slots[i].memory + (address - slots[i].gpa);
    errno = 0;
    die("%#lx is no address of the program's", (unsigned long)address);
    return NULL;
}

static uint64_t serve_read(uint64_t address, uint64_t bytes)
{
    if (bytes > FILE_BYTES - position)
        bytes = FILE_BYTES - position;
    memcpy(at(address, bytes), file + position, bytes);
    position += bytes;
    return bytes;
}

static uint64_t serve_write(uint64_t address, uint64_t bytes)
{
    if (bytes > sizeof samples - written)
        die("%lu bytes are too much", (unsigned long)bytes);
    memcpy((char *)samples + written, at(address, bytes), bytes);
    written += bytes;
    return bytes;
}

/* Serves a call; 0 if it is the last one. */
static int serve(struct kvm_regs *r)
{
    switch (r->rax) {
    case SYS_READ:
        r->rax = serve_read(r->rsi, r->rdx);
        return 1;
    case SYS_WRITE:
        r->rax = serve_write(r->rsi, r->rdx);
        return 1;
    case SYS_OPEN:
        r->rax = 3;
        return 1;
    case SYS_LSEEK:
        r->rax = position = r->rsi;
        return 1;
    case SYS_GETPPID:
        r->rax = 1;
        return 1;
    case SYS_EXIT:
        errno = 0;
        if (r->rdi)
            die("the program has ended with %lu", (unsigned long)r->rdi);
        return 0;
    }
    errno = 0;
    die("call %lu is not served", (unsigned long)r->rax);
    return 0;
}

struct machine {
    int vm, vcpu;
    struct kvm_run *page;
};

/* Runs to the next exit that is no signal's. */
static void enter(const struct machine *m)
{
    while (ioctl(m->vcpu, KVM_RUN, 0) < 0)
        if (errno != EINTR)
            die("KVM_RUN");
    errno = 0;
}

static void run(const struct machine *m)
{
    struct kvm_run *page = m->page;
    struct kvm_regs *r = &page->s.regs.regs;

    for (;;) {
        enter(m);
        if (page->exit_reason != KVM_EXIT_MMIO || page->mmio.phys_addr != head.gate)
            die("unexpected exit %u", page->exit_reason);
        if (!serve(r))
            return;
        if ((page->mmio.data[0] & 3) == 3) { /* SYSCALL does not leave ring 3 here */
            r->rip = r->rcx;
            r->rflags = (r->r11 & FLAGS) | FIXED_FLAGS;
        }
        page->kvm_dirty_regs = KVM_SYNC_X86_REGS;
    }
}

static size_t run_bytes(void)
{
    return (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
}

static void set_slot(const struct machine *m, uint32_t slot, uint64_t gpa, size_t bytes, void *host)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot, .guest_phys_addr = gpa, .memory_size = bytes, .userspace_addr = (uintptr_t)host,
    };

    if (ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        die("KVM_SET_USER_MEMORY_REGION");
}

static struct machine make(void)
{
    struct {
        uint32_t bytes;
        uint8_t set[SIGSET_BYTES];
    } mask = {SIGSET_BYTES, {0}};
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entries[MSRS];
    } msrs = {.head = {.nmsrs = MSRS}};
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = head.xcr0}}};
    struct machine m = {.vm = ioctl(kvm, KVM_CREATE_VM, 0)};

    if (m.vm < 0)
        die("KVM_CREATE_VM");
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i].memory = map_memory(slots[i].bytes, MAP_PRIVATE | MAP_NORESERVE, slots[i].content);
        set_slot(&m, i, slots[i].gpa, slots[i].bytes, slots[i].memory);
    }
    if ((m.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, 0)) < 0)
        die("KVM_CREATE_VCPU");
    m.page = (void *)map_memory(run_bytes(), MAP_SHARED, m.vcpu);
    m.page->kvm_valid_regs = KVM_SYNC_X86_REGS;
    if (ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, &mask) < 0)
        die("KVM_SET_SIGNAL_MASK");
    if (ioctl(m.vcpu, KVM_SET_CPUID2, cpuid) < 0 || ioctl(m.vcpu, KVM_SET_SREGS, &head.sregs) < 0)
        die("KVM_SET_SREGS");
    if (head.xcr0 && ioctl(m.vcpu, KVM_SET_XCRS, &xcrs) < 0)
        die("KVM_SET_XCRS");
    for (int i = 0; i < MSRS; i++)
        msrs.entries[i] = (struct kvm_msr_entry){.index = (uint32_t)head.msrs[i][0], .data = head.msrs[i][1]};
    if (ioctl(m.vcpu, KVM_SET_MSRS, &msrs) != MSRS)
        die("KVM_SET_MSRS");
    if (ioctl(m.vcpu, KVM_SET_REGS, &head.regs) < 0)
        die("KVM_SET_REGS");
    return m;
}

static void destroy(const struct machine *m)
{
    munmap(m->page, run_bytes());
    close(m->vcpu);
    close(m->vm);
    for (int i = 0; i < SLOTS; i++)
        munmap(slots[i].memory, slots[i].bytes);
}

static void go(void)
{
    struct machine m = make();

    position = written = 0;
    run(&m);
    destroy(&m);
    for (uint64_t i = 0; i < written / sizeof *samples; i++)
        printf("%.0f ", (double)samples[i] * 1e6 / head.tsc_khz);
    printf("\n");
}

/* ---- Functions ---- */

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Memory in huge pages, written to. */
static char *huge(size_t bytes)
{
    char *at = map_memory(bytes + HUGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

    at = (char *)(((uintptr_t)at + HUGE - 1) / HUGE * HUGE);
    madvise(at, bytes, MADV_HUGEPAGE);
    memset(at, 1, bytes);
    return at;
}

static uint16_t from_hexadecimal(uint8_t *to, const char *text)
{
    uint16_t bytes = 0;
    unsigned byte;

    for (; bytes < PF_PAYLOAD_MAX && sscanf(text, "%2x", &byte) == 1; text += 2)
        to[bytes++] = (uint8_t)byte;
    return bytes;
}

/* Puts a message into the receive ring, and runs the program until it has answered, and waits again. */
static void call(const struct machine *m, volatile struct pf_control *control, const struct pf_descriptor *asked)
{
    uint32_t answers = control->tx_head;

    memcpy((void *)&control->rx[control->rx_head % PF_RX_ENTRIES], asked, sizeof *asked);
    control->rx_head++;
    control->bell_status = PF_OK;
    enter(m);
    volatile struct pf_descriptor *answer = &control->tx[answers % PF_TX_ENTRIES];
    if (m->page->exit_reason != KVM_EXIT_MMIO || m->page->mmio.phys_addr != PF_DOORBELL_GPA)
        die("unexpected exit %u of a function's", m->page->exit_reason);
    if (m->page->mmio.data[0] != PF_BELL_TRANSMIT_WAIT || control->tx_head != answers + 1 || answer->tag != asked->tag)
        die("no answer to a call");
    answer->status = PF_OK;
    control->tx_tail = control->tx_head;
}

static void call_command(unsigned count, unsigned pages, int copied, const char *payload)
{
    static struct machine m;
    static char *shared, *outside;
    static size_t shared_bytes;
    size_t bytes = (size_t)pages * PF_PAGE_SIZE;
    struct pf_descriptor asked = {.operation = PF_OP_SEND, .sender = PF_PEER_HOST, .tag = 1};

    if (!m.page)
        m = make(); /* once: that it is warm is what is measured */
    volatile struct pf_control *control = (void *)at(PF_CONTROL_GPA, sizeof *control);
    if (shared_bytes < bytes) {
        if (shared_bytes)
            set_slot(&m, WINDOW_SLOT, control->window_gpa, 0, shared);
        shared = huge(bytes);
        outside = huge(bytes);
        shared_bytes = bytes;
        set_slot(&m, WINDOW_SLOT, control->window_gpa, bytes, shared);
    }
    asked.payload_length = from_hexadecimal(asked.payload, payload);
    for (unsigned i = 0; i < count; i++) {
        uint64_t start = now();

        if (copied)
            memcpy(shared, outside, bytes);
        call(&m, control, &asked);
        if (copied)
            memcpy(outside, shared, bytes);
        printf("%llu ", (unsigned long long)(now() - start));
    }
    printf("\n");
}

/* ---- The scene ---- */

static void read_scene(const char *path)
{
    FILE *from = open_scene(path, "PFCALLS1", &head, sizeof head);

    read_cpuid(from, head.cpuid_count);
    for (int i = 0; i < SLOTS; i++) {
        get(from, &slots[i], 3 * sizeof(uint64_t));
        slots[i].content = read_memory(from, slots[i].bytes, slots[i].chunks);
    }
    fclose(from);
}

int main(int argc, char **argv)
{
    static char line[4096];
    unsigned count, pages, copied;
    int payload;

    if (argc != 2 || (kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)) < 0)
        die(argc == 2 ? "/dev/kvm" : "usage: floor_calls SCENE");
    read_scene(argv[1]);
    file = map_memory(FILE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    memset(file, 1, FILE_BYTES);
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "go\n"))
            go();
        else if (sscanf(line, "call %u %u %u %n", &count, &pages, &copied, &payload) == 3)
            call_command(count, pages, (int)copied, line + payload);
        else {
            errno = 0;
            die("bad command: %s", line);
        }
        fflush(stdout);
    }
    return 0;
}
