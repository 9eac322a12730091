/* SPDX-License-Identifier: Apache-2.0
 *
 * What the floors have in common: how they end with an error, what they map, and how a scene is read
 * (vmm/bench/scene.py writes it). Each is one C file that includes this one first.
 */
#ifndef FLOOR_H
#define FLOOR_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHUNK_BYTES (1ul << 24) /* of a scene, at most */

static int kvm;
static struct kvm_cpuid2 *cpuid;

static void die(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fprintf(stderr, "floor: ");
    vfprintf(stderr, format, arguments);
    if (errno)
        fprintf(stderr, ": %s", strerror(errno));
    fprintf(stderr, "\n");
    exit(1);
}

static void *map(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    void *at = mmap(address, bytes, protection, flags, fd, offset);

    if (at == MAP_FAILED)
        die("mmap of %zu bytes", bytes);
    return at;
}

static void get(FILE *from, void *into, size_t bytes)
{
    if (fread(into, 1, bytes, from) != bytes) {
        errno = ferror(from) ? errno : 0;
        die("the scene is too short");
    }
}

/* Opens a scene, and reads its head, which begins with this. */
static FILE *open_scene(const char *path, const char *magic, void *head, size_t bytes)
{
    FILE *from = fopen(path, "rb");

    if (!from)
        die("%s", path);
    get(from, head, bytes);
    if (memcmp(head, magic, strlen(magic))) {
        errno = 0;
        die("%s is no scene", path);
    }
    return from;
}

static void read_cpuid(FILE *from, uint32_t count)
{
    cpuid = calloc(1, sizeof *cpuid + count * sizeof cpuid->entries[0]);
    cpuid->nent = count;
    get(from, cpuid->entries, count * sizeof cpuid->entries[0]);
}

/* Reads memory of so many bytes, of which the scene has chunks; returns a memfd with it. */
static int read_memory(FILE *from, uint64_t bytes, uint64_t chunks)
{
    static char data[CHUNK_BYTES];
    int memory = memfd_create("floor", MFD_CLOEXEC);

    if (memory < 0 || ftruncate(memory, (off_t)bytes) < 0)
        die("memfd");
    for (uint64_t i = 0; i < chunks; i++) {
        uint64_t chunk[2]; /* address, bytes */

        get(from, chunk, sizeof chunk);
        if (chunk[1] > sizeof data)
            die("a chunk of %lu bytes", (unsigned long)chunk[1]);
        get(from, data, chunk[1]);
        if (pwrite(memory, data, chunk[1], (off_t)chunk[0]) != (ssize_t)chunk[1])
            die("pwrite");
    }
    return memory;
}

#endif
