/* libpng, for Python: what a PNG has in it, and its pixels. */
#include <png.h>
#include <stdint.h>
#include <string.h>

struct size {
    uint32_t width, height; /* 0 and 0: this is no PNG */
};

struct size png_size(const uint8_t *file, size_t bytes)
{
    png_image image = {.version = PNG_IMAGE_VERSION};
    struct size size = {0, 0};

    if (png_image_begin_read_from_memory(&image, file, bytes))
        size = (struct size){image.width, image.height};
    png_image_free(&image);
    return size;
}

/* Decodes to four bytes a pixel (RGBA). Returns NULL, or what is wrong with the file. */
const char *png_decode(const uint8_t *file, size_t bytes, uint8_t *pixels, size_t room)
{
    static char wrong[sizeof((png_image *)0)->message];
    png_image image = {.version = PNG_IMAGE_VERSION};

    if (png_image_begin_read_from_memory(&image, file, bytes)) {
        image.format = PNG_FORMAT_RGBA;
        if (PNG_IMAGE_SIZE(image) > room)
            strcpy(image.message, "there is no room for so many pixels");
        else if (png_image_finish_read(&image, NULL, pixels, 0, NULL))
            return NULL;
    }
    png_image_free(&image);
    memcpy(wrong, image.message, sizeof wrong);
    return wrong;
}
