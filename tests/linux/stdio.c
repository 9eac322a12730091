/* Formatted output and input, buffers, positions, and errors. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void formats(void)
{
    printf("%d %i %u %x %X %#o %c %s %%\n", -42, 42, 42u, 0xbeef, 0xBEEF, 8, 'c', "text");
    printf("[%8d|%-8d|%08d|%+d|% d]\n", 7, 7, 7, 7, 7);
    printf("[%.3s|%10.2s|%-6s|%*s]\n", "abcdef", "xyz", "ab", 5, "w");
    printf("%hhd %hd %ld %lld %zu %jd %td\n", (signed char)-1, (short)-2, -3L, -4LL, (size_t)5, (intmax_t)6, (ptrdiff_t)7);
    printf("%.3f %10.2e %g %G %a\n", 3.14159, 12345.678, 1e-5, 1e20, 1.5);
    printf("%Lf %.10Lg\n", 2.5L, 1.0L / 3);
    printf("%" PRIu64 " %" PRIx32 "\n", UINT64_MAX, UINT32_MAX);
}

static void buffers(void)
{
    char text[32];
    int n = snprintf(text, sizeof text, "%s", "longer than what there is room for");

    printf("%d [%s]\n", n, text);
    setvbuf(stdout, NULL, _IOLBF, 256);
    for (int i = 0; i < 2000; i++)
        putchar("0123456789\n"[i % 11]);
    putchar('\n');
}

static void input(void)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t bytes;
    int a = 0, b = 0;
    char word[16] = "";

    if (scanf("%d %x %15s", &a, (unsigned *)&b, word) == 3)
        printf("scanned %d %d %s\n", a, b, word);
    ungetc('#', stdin);
    while ((bytes = getline(&line, &room, stdin)) > 0)
        printf("%zd: %s", bytes, line);
    printf("end %d error %d\n", !!feof(stdin), !!ferror(stdin));
    free(line);
}

static void positions(void)
{
    FILE *file = tmpfile();
    char text[16] = "";

    if (!file) {
        perror("tmpfile");
        return;
    }
    for (int i = 0; i < 10000; i++)
        fprintf(file, "%05d\n", i);
    printf("at %ld\n", ftell(file));
    fseek(file, 6 * 1234, SEEK_SET);
    printf("read %zu [%.5s]\n", fread(text, 1, 6, file), text);
    fseek(file, -6, SEEK_END);
    printf("last %s", fgets(text, sizeof text, file));
    rewind(file);
    printf("first %s", fgets(text, sizeof text, file));
    fclose(file);
}

int main(void)
{
    formats();
    buffers();
    input();
    positions();
    FILE *none = fopen("in/no such file", "r");
    printf("%d %s\n", none == NULL, strerror(errno));
    fprintf(stderr, "to standard error\n");
    char *text = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    fprintf(memory, "%s %d", "in memory", 1);
    fclose(memory);
    printf("%zu %s\n", bytes, text);
    free(text);
    fputs("no newline at the end", stdout);
    return 7;
}
