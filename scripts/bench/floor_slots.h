/* SPDX-License-Identifier: Apache-2.0
 *
 * A window of memslots, as machines have it that are spawned beside many others (vmm/memory/movers/slots.py): what is
 * shown there is a slot onto the pool, which is mapped once. A slot cannot be cut: it is deleted, and what is left of
 * it is created. For extents below LARGE.
 */
#ifndef FLOOR_SLOTS_H
#define FLOOR_SLOTS_H

#include "floor.h"
#include "pageferry.h"

#define SLOTS 16384u /* of a window; there are 32764 of a VM */

struct slot {
    uint32_t page, pages;
    char *host;
    uint32_t flags;
};

/* The slots of a window of `pages` pages, which are numbered from `first` on. */
struct slots {
    int vm;
    uint32_t first, pages;
    uint64_t gpa;
    struct slot slot[SLOTS];
    uint16_t unused[SLOTS]; /* a stack */
    uint32_t unused_count;
    uint16_t at[]; /* by page: 1 more than the slot that it is in, or 0 */
};

static void set_memslot(int vm, uint32_t number, uint64_t gpa, size_t bytes, const void *host, uint32_t flags)
{
    struct kvm_userspace_memory_region region = {
        .slot = number, .flags = flags, .guest_phys_addr = gpa, .memory_size = bytes, .userspace_addr = (uintptr_t)host,
    };

    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        die("KVM_SET_USER_MEMORY_REGION of slot %u, %zu bytes", number, bytes);
}

static struct slots *make_slots(int vm, uint32_t first, uint64_t gpa, uint32_t pages)
{
    struct slots *s = calloc(1, sizeof *s + pages * sizeof s->at[0]);

#ifdef KVM_X86_QUIRK_SLOT_ZAP_ALL /* Linux 6.12: a deleted slot leaves the translations of all others */
    struct kvm_enable_cap cap = {.cap = KVM_CAP_DISABLE_QUIRKS2, .args = {KVM_X86_QUIRK_SLOT_ZAP_ALL}};

    if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL)
        ioctl(vm, KVM_ENABLE_CAP, &cap);
#endif
    s->vm = vm, s->first = first, s->gpa = gpa, s->pages = pages;
    for (uint32_t i = SLOTS; i-- > 0;)
        s->unused[s->unused_count++] = (uint16_t)i;
    return s;
}

static void put_slot(struct slots *s, const struct slot *what, uint32_t number)
{
    size_t bytes = what->pages * (size_t)PF_PAGE_SIZE;

    set_memslot(s->vm, s->first + number, s->gpa + what->page * (uint64_t)PF_PAGE_SIZE, bytes, what->host, what->flags);
    s->slot[number] = *what;
    for (uint32_t i = 0; i < what->pages; i++)
        s->at[what->page + i] = (uint16_t)(number + 1);
}

static void show_slot(struct slots *s, const struct slot *what)
{
    errno = 0;
    if (!s->unused_count || what->page + what->pages > s->pages)
        die("no memslot for %u pages at page %u", what->pages, what->page);
    put_slot(s, what, s->unused[--s->unused_count]);
}

static void hide_slots(struct slots *s, uint32_t page, uint32_t pages)
{
    for (uint32_t end = page + pages; page < end;) {
        if (!s->at[page]) {
            page++;
            continue;
        }
        uint32_t number = s->at[page] - 1u, last;
        struct slot left = s->slot[number], right = left;

        set_memslot(s->vm, s->first + number, s->gpa, 0, NULL, 0);
        last = left.page + left.pages < end ? left.page + left.pages : end;
        left.pages = page - left.page;
        right.pages -= last - right.page;
        right.host += (last - right.page) * (size_t)PF_PAGE_SIZE;
        right.page = last;
        memset(&s->at[page], 0, (last - page) * sizeof s->at[0]);
        s->unused[s->unused_count++] = (uint16_t)number;
        if (left.pages)
            show_slot(s, &left);
        if (right.pages)
            show_slot(s, &right);
        page = last;
    }
}

#endif
