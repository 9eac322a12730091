// Does with one file, and what is mapped of it, what its arguments say; each is a step.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *maps[16];
static int count, fd = -1;

static const char *name(int number)
{
    switch (number) {
    case EACCES: return "EACCES";
    case EBADF: return "EBADF";
    case EFAULT: return "EFAULT";
    case EIO: return "EIO";
    case ENODEV: return "ENODEV";
    case ENOMEM: return "ENOMEM";
    case ENOSPC: return "ENOSPC";
    case EPERM: return "EPERM";
    case EROFS: return "EROFS";
    default: return strerror(number);
    }
}

static void tell(const char *what, long result)
{
    if (result < 0)
        printf("%s: %s\n", what, name(errno));
    else
        printf("%s: %ld\n", what, result);
}

static int rights(char of)
{
    return of == 'w' ? PROT_READ | PROT_WRITE : of == 'n' ? PROT_NONE : PROT_READ;
}

static void step(const char *text)
{
    char word[64] = "", letter = 0, other = 0, buffer[64] = "";
    unsigned long slot = 0, at = 0, size = 0;
    uint64_t sum = 0;
    switch (text[0]) {
    case 'o': // open PATH r|w|t
        sscanf(text, "o %63s %c", word, &letter);
        fd = open(word, letter == 'r' ? O_RDONLY : letter == 'w' ? O_RDWR : O_WRONLY | O_TRUNC);
        tell("open", fd < 0 ? -1 : 0);
        break;
    case 'O': // make PATH
        sscanf(text, "O %63s", word);
        fd = open(word, O_RDWR | O_CREAT | O_TRUNC, 0600);
        tell("make", fd < 0 ? -1 : 0);
        break;
    case 'n': // never ends
        for (;;)
            pause();
    case 'm': // map s|p r|w OFFSET SIZE
        sscanf(text, "m %c %c %lu %lu", &letter, &other, &at, &size);
        char *p = mmap(NULL, size, rights(other), letter == 's' ? MAP_SHARED : MAP_PRIVATE, fd, at);
        maps[count++] = p;
        tell("map", p == MAP_FAILED ? -1 : 0);
        break;
    case 'a': // anonymous memory where a mapping has been: SLOT OFFSET SIZE
        sscanf(text, "a %lu %lu %lu", &slot, &at, &size);
        memset(mmap(maps[slot] + at, size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), 'a', size);
        break;
    case 'f': // the file there: SLOT OFFSET SIZE
        sscanf(text, "f %lu %lu %lu", &slot, &at, &size);
        p = mmap(maps[slot] + at, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, at);
        tell("map", p == MAP_FAILED ? -1 : 0);
        break;
    case 'g': // get SLOT OFFSET
        sscanf(text, "g %lu %lu", &slot, &at);
        // One by one: on some hosts KVM emulates who touches what is not there, and no SSE.
        for (size = 0; size < 8; size++)
            word[size] = ((volatile char *)maps[slot])[at + size];
        word[size] = 0;
        printf("at %lu: %s\n", at, word);
        break;
    case 's': // store SLOT OFFSET TEXT
        sscanf(text, "s %lu %lu %63s", &slot, &at, word);
        strcpy(maps[slot] + at, word);
        break;
    case 'S': // sum of pages' first words: SLOT SIZE
        sscanf(text, "S %lu %lu", &slot, &size);
        for (at = 0; at < size; at += 4096)
            sum += *(uint64_t *)(maps[slot] + at);
        printf("sum: %lu\n", sum);
        break;
    case 'r': // read OFFSET
        sscanf(text, "r %lu", &at);
        tell("read", pread(fd, buffer, 8, at));
        printf("%s\n", buffer);
        break;
    case 'w': // write OFFSET TEXT
        sscanf(text, "w %lu %63s", &at, word);
        tell("write", pwrite(fd, word, strlen(word), at));
        break;
    case 't': // truncate SIZE
        sscanf(text, "t %lu", &size);
        tell("truncate", ftruncate(fd, size));
        break;
    case 'p': // protect SLOT OFFSET SIZE r|w|n
        sscanf(text, "p %lu %lu %lu %c", &slot, &at, &size, &letter);
        tell("protect", mprotect(maps[slot] + at, size, rights(letter)));
        break;
    case 'u': // unmap SLOT OFFSET SIZE
        sscanf(text, "u %lu %lu %lu", &slot, &at, &size);
        tell("unmap", munmap(maps[slot] + at, size));
        break;
    case 'R': // remap SLOT OLD NEW
        sscanf(text, "R %lu %lu %lu", &slot, &at, &size);
        tell("remap", mremap(maps[slot], at, size, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
        break;
    case 'c': // call with what is mapped, written over the file's beginning: SLOT OFFSET SIZE
        sscanf(text, "c %lu %lu %lu", &slot, &at, &size);
        tell("call", pwrite(fd, maps[slot] + at, size, 0));
        break;
    case 'C': // call that reads into what is mapped: SLOT OFFSET
        sscanf(text, "C %lu %lu", &slot, &at);
        tell("call", syscall(SYS_getcwd, maps[slot] + at, 8L));
        break;
    case 'i': // information
    {
        struct stat about;
        fstat(fd, &about);
        printf("size %ld, mode %o\n", (long)about.st_size, about.st_mode);
        break;
    }
    default:
        printf("%s\n", text);
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        step(argv[i]);
    return 0;
}
