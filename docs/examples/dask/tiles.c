/* tiles.c */
#include <stdint.h>

void brighten(int height, int width, uint8_t pixels[height][width], double percent)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            double value = pixels[y][x] * percent / 100;
            pixels[y][x] = value > 255 ? 255 : (uint8_t)value;
        }
}

int pixel(int height, int width, const uint8_t pixels[height][width], long y, long x)
{
    return pixels[y][x]; /* wherever that is */
}
