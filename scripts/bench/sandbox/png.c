/* SPDX-License-Identifier: Apache-2.0
 * libpng as the bench calls it: a picture's pixels, four bytes each. */
#include <png.h>
#include <stdint.h>

/* Returns width x height, or 0 if this is no PNG that can be read. */
uint64_t png_pixels(const uint8_t *file, size_t bytes)
{
    png_image image = {.version = PNG_IMAGE_VERSION};
    uint64_t pixels = 0;

    if (png_image_begin_read_from_memory(&image, file, bytes))
        pixels = (uint64_t)image.width * image.height;
    png_image_free(&image);
    return pixels;
}

/* Returns 1 if the picture, of so many bytes at most, has been decoded. */
int png_decode(const uint8_t *file, size_t bytes, uint8_t *pixels, size_t room)
{
    png_image image = {.version = PNG_IMAGE_VERSION};
    int done = 0;

    if (png_image_begin_read_from_memory(&image, file, bytes)) {
        image.format = PNG_FORMAT_RGBA;
        done = PNG_IMAGE_SIZE(image) <= room && png_image_finish_read(&image, 0, pixels, 0, 0);
    }
    png_image_free(&image);
    return done;
}
