/* The C locale: characters, strings, wide strings, time. */
#include <ctype.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <wchar.h>
#include <wctype.h>

static void characters(void)
{
    int (*const tests[])(int) = { isalpha, isdigit, isspace, ispunct, isupper, islower, isxdigit, iscntrl, isprint };

    for (size_t t = 0; t < sizeof tests / sizeof *tests; t++) {
        unsigned sum = 0;
        for (int c = 0; c < 256; c++)
            sum = sum * 3 + !!tests[t](c);
        printf("%08x ", sum);
    }
    printf("%c%c\n", toupper('q'), tolower('Q'));
}

static void strings(void)
{
    char text[] = "one,two;;three", *rest = text, *word;
    char large[5000], other[5000];

    while ((word = strsep(&rest, ",;")))
        printf("[%s]", word);
    memset(large, 'a', sizeof large);
    memcpy(other, large, sizeof other);
    large[4999] = other[4999] = 0;
    printf("%zu %d ", strlen(large), memcmp(large, other, sizeof large));
    other[4321] = 'b';
    printf("%d %td %td\n", strcmp(large, other) < 0, strchr(other, 'b') - other, strrchr(large, 'a') - large);
    printf("%s %s %zu %zu\n", strstr("haystack with needle", "needle"), strpbrk("abc-def", "-+"), strspn("aab", "a"),
           strcspn("aab", "b"));
    printf("%d %d\n", strcoll("a", "B") > 0, strcasecmp("ABC", "abc"));
    for (size_t n = 0; n < 70; n += 3)
        memmove(large + n, large + 2 * n + 1, n);
    printf("%zu\n", strlen(large));
}

static void wide(void)
{
    wchar_t text[32];
    char back[32];
    size_t n = mbstowcs(text, "plain text", 32);

    printf("%zu %zu %d\n", n, wcslen(text), towupper(L'x') == L'X');
    printf("%zu %s\n", wcstombs(back, L"and back", 32), back);
    printf("%ls|%lc\n", L"wide", L'w');
}

static void times(void)
{
    time_t when = 1000000000;
    struct tm parts = *gmtime(&when), made = { .tm_year = 100, .tm_mon = 1, .tm_mday = 30, .tm_hour = 25 };
    char text[100];

    strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S %j %U %a %B %Z", &parts);
    puts(text);
    printf("%lld ", (long long)mktime(&made));
    fputs(asctime(&made), stdout);
    strftime(text, sizeof text, "%c %x %X %p", localtime(&when));
    puts(text);
}

int main(void)
{
    const char *name = setlocale(LC_ALL, "");

    printf("%s\n", name ? name : "none");
    printf("%s\n", setlocale(LC_ALL, "C"));
    printf("[%s] [%s] [%s]\n", localeconv()->decimal_point, localeconv()->thousands_sep, nl_langinfo(RADIXCHAR));
    printf("%s %s\n", nl_langinfo(DAY_1), nl_langinfo(MON_12));
    characters();
    strings();
    wide();
    times();
    printf("%s\n", getenv("GREETING") ? getenv("GREETING") : "no greeting");
    return 0;
}
