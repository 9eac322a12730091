/* Compresses a file at several levels, and back: `zstd_file FILE OUTPUT`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

int main(int argc, char **argv)
{
    static const int levels[] = { 1, 3, 9, 19 };
    FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;

    if (!file)
        return 2;
    fseek(file, 0, SEEK_END);
    size_t bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(bytes), *back = malloc(bytes);
    if (fread(data, 1, bytes, file) != bytes)
        return 2;
    fclose(file);
    size_t room = ZSTD_compressBound(bytes), size = 0;
    void *packed = malloc(room);
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        size = ZSTD_compress(packed, room, data, bytes, levels[i]);
        memset(back, 0, bytes);
        size_t unpacked = ZSTD_decompress(back, bytes, packed, size);
        printf("level %d: %zu to %zu, back %d\n", levels[i], bytes, size, unpacked == bytes && !memcmp(data, back, bytes));
    }
    file = fopen(argv[2], "wb");
    fwrite(packed, 1, size, file);
    return fclose(file) != 0;
}
