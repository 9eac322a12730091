/* SQLite, for Python: a query on a database that lies in memory, and stays there. */
#include <sqlite3.h>
#include <stdint.h>
#include <string.h>

/* Appends text as JSON has it. */
static void put_text(sqlite3_str *out, const unsigned char *text)
{
    sqlite3_str_appendchar(out, 1, '"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            sqlite3_str_appendf(out, "\\%c", *text);
        else if (*text < ' ')
            sqlite3_str_appendf(out, "\\u%04x", *text);
        else
            sqlite3_str_appendchar(out, 1, (char)*text);
    }
    sqlite3_str_appendchar(out, 1, '"');
}

static void put_value(sqlite3_str *out, sqlite3_stmt *row, int column)
{
    switch (sqlite3_column_type(row, column)) {
    case SQLITE_NULL:
        sqlite3_str_appendall(out, "null");
        break;
    case SQLITE_INTEGER:
        sqlite3_str_appendf(out, "%lld", sqlite3_column_int64(row, column));
        break;
    case SQLITE_FLOAT:
        sqlite3_str_appendf(out, "%!.17g", sqlite3_column_double(row, column));
        break;
    default:
        put_text(out, sqlite3_column_text(row, column));
    }
}

static int put_rows(sqlite3_str *out, sqlite3_stmt *rows)
{
    int state;

    sqlite3_str_appendchar(out, 1, '[');
    for (int n = 0; (state = sqlite3_step(rows)) == SQLITE_ROW; n++) {
        sqlite3_str_appendall(out, n ? ",[" : "[");
        for (int column = 0; column < sqlite3_column_count(rows); column++) {
            if (column)
                sqlite3_str_appendchar(out, 1, ',');
            put_value(out, rows, column);
        }
        sqlite3_str_appendchar(out, 1, ']');
    }
    sqlite3_str_appendchar(out, 1, ']');
    return state;
}

/* Returns the rows of a query as JSON, a list of lists, or as text what is wrong with it. The database is
 * read where it lies: SQLite copies none of it, and `const` lets nobody write to it. */
const char *query(const uint8_t *database, size_t bytes, const char *sql)
{
    static char *answer; /* until the next call */
    sqlite3 *db = NULL;
    sqlite3_stmt *rows = NULL;
    unsigned flags = SQLITE_DESERIALIZE_READONLY;
    sqlite3_str *out = sqlite3_str_new(NULL);
    int state = sqlite3_open(":memory:", &db);

    sqlite3_free(answer);
    if (state == SQLITE_OK)
        state = sqlite3_deserialize(db, "main", (uint8_t *)database, (sqlite3_int64)bytes,
                                    (sqlite3_int64)bytes, flags);
    if (state == SQLITE_OK)
        state = sqlite3_prepare_v2(db, sql, -1, &rows, NULL);
    if (state == SQLITE_OK)
        state = put_rows(out, rows);
    if (state != SQLITE_DONE) {
        sqlite3_str_reset(out);
        put_text(out, (const unsigned char *)sqlite3_errmsg(db));
    }
    sqlite3_finalize(rows);
    sqlite3_close(db);
    answer = sqlite3_str_finish(out);
    return answer;
}
