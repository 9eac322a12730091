/* Files: read, written, listed, renamed, linked and mapped; and what is refused. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SAY(call) say(#call, (long)(call))

static void say(const char *call, long result)
{
    if (result < 0)
        printf("%s: %s\n", call, strerror(errno));
    else
        printf("%s: %ld\n", call, result);
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void list(const char *path)
{
    struct dirent **names;
    int count = scandir(path, &names, visible, alphasort);

    printf("%s has %d:", path, count);
    for (int i = 0; i < count; i++) {
        printf(" %s%s", names[i]->d_name, names[i]->d_type == DT_DIR ? "/" : names[i]->d_type == DT_LNK ? "@" : "");
        free(names[i]);
    }
    putchar('\n');
    if (count >= 0)
        free(names);
}

static void about(const char *path)
{
    struct stat found;

    if (lstat(path, &found) < 0)
        printf("%s: %s\n", path, strerror(errno));
    else
        printf("%s: %c %lld bytes, %d links\n", path, S_ISDIR(found.st_mode) ? 'd' : S_ISLNK(found.st_mode) ? 'l' : 'f',
               S_ISDIR(found.st_mode) ? 0LL : (long long)found.st_size, S_ISDIR(found.st_mode) ? 0 : (int)found.st_nlink);
}

static void written(void)
{
    char text[100] = "";
    int fd = open("out/new", O_RDWR | O_CREAT | O_EXCL, 0644);

    SAY(fd >= 0);
    SAY(write(fd, "0123456789", 10));
    SAY(pwrite(fd, "abc", 3, 4));
    SAY(lseek(fd, 0, SEEK_SET));
    SAY(read(fd, text, 100));
    puts(text);
    SAY(lseek(fd, 5000, SEEK_SET));
    SAY(write(fd, "beyond", 6));
    SAY(pread(fd, text, 8, 4996));
    printf("%d %.4s\n", text[0] | text[3], text + 4);
    struct iovec parts[] = { { "one ", 4 }, { NULL, 0 }, { "two\n", 4 } };
    SAY(writev(fd, parts, 3));
    about("out/new");
    SAY(ftruncate(fd, 3));
    about("out/new");
    int twin = dup(fd);
    SAY(twin > fd);
    SAY(lseek(twin, 0, SEEK_CUR));
    SAY(fcntl(fd, F_GETFL) & (O_ACCMODE | O_APPEND));
    SAY(close(fd));
    SAY(close(fd));
    SAY(write(twin, "x", 1));
    SAY(close(twin));
    fd = open("out/new", O_WRONLY | O_APPEND);
    SAY(write(fd, "end", 3));
    SAY(read(fd, text, 1));
    about("out/new");
    close(fd);
    SAY(open("out/new", O_RDWR | O_CREAT | O_EXCL, 0644));
}

static void names(void)
{
    char text[100] = "";

    SAY(mkdir("out/dir", 0755));
    SAY(mkdir("out/dir", 0755));
    SAY(rename("out/new", "out/dir/moved"));
    SAY(symlink("dir/moved", "out/link"));
    SAY(link("out/dir/moved", "out/hard"));
    SAY(readlink("out/link", text, 100));
    puts(text);
    about("out/link");
    about("out/hard");
    list("out");
    list("out/dir");
    SAY(rmdir("out/dir"));
    SAY(unlink("out/dir"));
    SAY(access("out/link", R_OK | W_OK));
    SAY(unlink("out/dir/moved"));
    SAY(access("out/link", F_OK));
    SAY(rmdir("out/dir"));
    list("out");
    SAY(rename("out/no", "out/yes"));
    SAY(open("out/hard/x", O_RDONLY));
    SAY(chdir("out"));
    about("hard");
    SAY(chdir(".."));
    SAY(open("in", O_WRONLY));
    SAY(mkdir("no/such/parent", 0755));
    about("in/numbers");
}

static void mapped(void)
{
    int fd = open("in/numbers", O_RDONLY);
    struct stat found;

    fstat(fd, &found);
    char *text = mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (text == MAP_FAILED) {
        perror("mmap");
        return;
    }
    long sum = 0;
    for (long long i = 0; i < found.st_size; i++)
        sum += text[i];
    printf("mapped: %lld bytes, sum %ld\n", (long long)found.st_size, sum);
    long beyond = 0, last = (found.st_size | 4095) + 1;
    for (long i = found.st_size; i < last; i++)
        beyond += text[i];
    printf("beyond the end: %ld\n", beyond);
    text[0] = '#';
    char byte = 0;
    SAY(pread(fd, &byte, 1, 0));
    printf("private: %c %d\n", text[0], byte == '#');
    SAY(munmap(text, (size_t)found.st_size));
    char *shared = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 4096);
    printf("the second page: %.10s\n", shared);
    SAY(close(fd));
    printf("still mapped: %.10s\n", shared);
    munmap(shared, 4096);
    char *own = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(own, 1, 1 << 20);
    SAY(madvise(own, 1 << 19, MADV_DONTNEED));
    printf("zeros again: %d, and not: %d\n", own[1000], own[1 << 19]);
    SAY(mprotect(own, 4096, PROT_READ));
    SAY(mprotect(own, 4096, PROT_READ | PROT_WRITE));
    own = mremap(own, 1 << 20, 4 << 20, MREMAP_MAYMOVE);
    printf("moved: %d %d\n", own[(1 << 20) - 1], own[(4 << 20) - 1]);
    SAY(munmap(own, 4 << 20));
    SAY(munmap((char *)1, 4096));
    SAY((long)mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

int main(void)
{
    char text[64];
    FILE *file = fopen("in/words", "r");

    while (file && fscanf(file, "%63s", text) == 1)
        printf("%s.", text);
    putchar('\n');
    if (file)
        fclose(file);
    list("in");
    written();
    names();
    mapped();
    int fds[2];
    SAY(pipe(fds));
    SAY(write(fds[1], "through", 7));
    SAY(close(fds[1]));
    SAY(read(fds[0], text, 64));
    SAY(read(fds[0], text, 64));
    file = fopen("out/result", "w");
    for (int i = 0; i < 1000; i++)
        fprintf(file, "%d squared is %d\n", i, i * i);
    SAY(fclose(file));
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY);
    SAY(write(null, "gone", 4));
    SAY(read(null, text, 4));
    text[3] = 7;
    SAY(read(zero, text, 4));
    printf("%d\n", text[3]);
    SAY(isatty(null));
    return 0;
}
