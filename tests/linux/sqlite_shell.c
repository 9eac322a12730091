/* SQL on a database: `sqlite_shell FILE SQL...`; each row is a line. */
#include <sqlite3.h>
#include <stdio.h>

static int row(void *unused, int count, char **values, char **names)
{
    (void)unused;
    (void)names;
    for (int i = 0; i < count; i++)
        printf("%s%s", i ? "|" : "", values[i] ? values[i] : "NULL");
    putchar('\n');
    return 0;
}

int main(int argc, char **argv)
{
    sqlite3 *database;
    int failed = 0;

    if (argc < 2 || sqlite3_open(argv[1], &database) != SQLITE_OK) {
        fprintf(stderr, "cannot open\n");
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        char *error = NULL;
        if (sqlite3_exec(database, argv[i], row, NULL, &error) != SQLITE_OK) {
            printf("error: %s\n", error);
            sqlite3_free(error);
            failed = 1;
        }
    }
    return sqlite3_close(database) != SQLITE_OK || failed;
}
