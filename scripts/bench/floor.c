/* SPDX-License-Identifier: Apache-2.0
 *
 * The floor: what messages cost with the system calls alone. The same guests ring the same doorbells, and the same
 * mapping calls are made in the same order, but there is no monitor: no ledger, no check, no queue but an array, no
 * Python. It trusts its two guests wholly.
 *
 *     floor SCENE      SCENE as vmm/bench/scene.py writes it
 *
 * Reads commands from standard input, a line each, and answers each with a line of numbers, nanoseconds a sample:
 *
 *     run KIND ROUNDS PAGES BATCH TOUCH USED DEPTH POPULATE
 *                                                 guests/include/bench.h; the depth of the receiver's queue; and whether
 *                                                 pages of the memfd are mapped as they are shown
 *     spawn N                                     N machines made and run to their first exit
 *     close N                                     the same, and the time is that of closing
 */
#include "floor.h"
#include "floor_slots.h"

#include <time.h>
#include <x86intrin.h>

#include "bench.h"
#include "pageferry.h"

enum mover { MEMFD, REMAP };
enum { SENDER, RECEIVER, LEAVER, IMAGES };

#define PAGE ((size_t)PF_PAGE_SIZE)
#define LARGE 512 /* pages */
#define GIANT (512 * LARGE) /* what is as large is aligned to it, as far as there is room */
#define SMALL_PAGES 16384 /* of each window, from its beginning, in which extents under LARGE lie */
#define QUEUE 64
#define NONE UINT32_MAX
#define PRIVATE_SLOT 0
#define WINDOW_SLOT 1
#define POOL_BYTES (8ul << 30) /* of address space, sparse */
#define SIGSET_BYTES 8

struct scene_head {
    char magic[8];
    uint32_t doorbell, mover, cpuid_count;
    uint32_t others; /* machines that there are before all else; they never run */
    uint32_t many; /* who is made beside so many has a window of memslots */
};

struct scene_image {
    uint64_t private_bytes, window_gpa, window_bytes, chunks;
    struct kvm_sregs sregs;
    struct kvm_regs regs;
};

struct image {
    struct scene_image at;
    int memory; /* a memfd with what is in private memory at first */
};

/* A run of pages of one window, and of the pool. */
struct extent {
    uint32_t page, pages, frame;
};

struct queued {
    struct pf_descriptor message;
    int brought; /* its pages are where they belong already */
    struct extent extents[PF_EXTENTS_MAX];
};

struct machine {
    int vm, vcpu;
    struct kvm_run *run;
    size_t run_bytes;
    char *memory, *window;
    struct slots *slots; /* or a window of these */
    const struct image *image;
    volatile struct pf_control *control;
    uint32_t tx_tail, rx_head;
    uint32_t *frames;    /* of the first SMALL_PAGES pages; NONE where there is none */
    uint32_t first_free; /* below it no page is free */
    struct extent large; /* the one large extent there may be */
    struct queued queue[QUEUE];
    uint32_t queued, depth;
};

static struct image images[IMAGES];
static enum mover mover;
static uint32_t others, many;
static uint32_t alive; /* machines */
static int pool_fd;
static char *pool; /* all of it, where memslots want it */
static char *home; /* where anonymous frames are when nobody has them */
static uint32_t next_frame, next_large_frame;
static uint32_t populate;
static struct machine pair[2];

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* ---- Mappings ---- */

static void *reserve(size_t bytes)
{
    size_t align = (bytes > GIANT * PAGE ? GIANT : LARGE) * PAGE;
    char *at = map(NULL, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return (char *)(((uintptr_t)at + align - 1) / align * align);
}

static char *at_page(const struct machine *m, uint32_t page)
{
    return m->window + page * PAGE;
}

/* Frames of large extents are anonymous memory with the mover remap, all others the memfd's. */
static int anonymous(const struct extent *e)
{
    return mover == REMAP && e->pages >= LARGE;
}

static void remap(char *from, char *to, size_t bytes)
{
    if (mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == MAP_FAILED)
        die("mremap of %zu bytes", bytes);
}

static void show(const struct machine *m, const struct extent *e, int protection)
{
    size_t bytes = e->pages * PAGE;

    if (m->slots) {
        char *host = (anonymous(e) ? home : pool) + e->frame * PAGE;

        show_slot(m->slots, &(struct slot){e->page, e->pages, host, protection & PROT_WRITE ? 0 : KVM_MEM_READONLY});
    } else if (anonymous(e))
        remap(home + e->frame * PAGE, at_page(m, e->page), bytes);
    else
        map(at_page(m, e->page), bytes, protection, MAP_SHARED | MAP_FIXED | (populate ? MAP_POPULATE : 0), pool_fd,
            (off_t)(e->frame * PAGE));
}

static void hole(const struct machine *m, const struct extent *e)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

    map(at_page(m, e->page), e->pages * PAGE, PROT_NONE, flags, -1, 0);
}

static void hide(const struct machine *m, const struct extent *e)
{
    if (m->slots) {
        hide_slots(m->slots, e->page, e->pages);
        return;
    }
    if (anonymous(e))
        remap(at_page(m, e->page), home + e->frame * PAGE, e->pages * PAGE);
    hole(m, e);
}

/* ---- Machines ---- */

static void make(struct machine *m, const struct image *image)
{
    const struct scene_image *at = &image->at;
    struct {
        uint32_t bytes;
        uint8_t set[SIGSET_BYTES];
    } mask = {SIGSET_BYTES, {0}};

    m->image = image;
    m->memory = map(NULL, at->private_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, image->memory, 0);
    m->control = (void *)(m->memory + PF_CONTROL_GPA);
    if ((m->vm = ioctl(kvm, KVM_CREATE_VM, 0)) < 0)
        die("KVM_CREATE_VM");
    set_memslot(m->vm, PRIVATE_SLOT, 0, at->private_bytes, m->memory, 0);
    if ((m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0)) < 0)
        die("KVM_CREATE_VCPU");
    m->run = map(NULL, m->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
    if (ioctl(m->vcpu, KVM_SET_SIGNAL_MASK, &mask) < 0)
        die("KVM_SET_SIGNAL_MASK");
    if (images[SENDER].at.sregs.cs.dpl == 0) {
        struct kvm_enable_cap cap = {.cap = KVM_CAP_EXIT_HYPERCALL, .args = {1 << PF_HYPERCALL}};
        ioctl(m->vm, KVM_ENABLE_CAP, &cap);
    }
    struct kvm_sregs sregs = at->sregs;
    if (ioctl(m->vcpu, KVM_SET_CPUID2, cpuid) < 0 || ioctl(m->vcpu, KVM_SET_SREGS, &sregs) < 0)
        die("KVM_SET_SREGS");
    if (ioctl(m->vcpu, KVM_SET_REGS, &at->regs) < 0)
        die("KVM_SET_REGS");
    if (at->window_bytes && alive >= many)
        m->slots = make_slots(m->vm, WINDOW_SLOT, at->window_gpa, SMALL_PAGES);
    else if (at->window_bytes) {
        m->window = reserve(at->window_bytes);
        set_memslot(m->vm, WINDOW_SLOT, at->window_gpa, at->window_bytes, m->window, 0);
    }
    alive++;
}

static void destroy(struct machine *m)
{
    munmap(m->run, m->run_bytes);
    close(m->vcpu);
    close(m->vm);
    if (m->window)
        munmap(m->window, m->image->at.window_bytes);
    munmap(m->memory, m->image->at.private_bytes);
    free(m->slots);
    alive--;
}

/* Runs a machine until it rings; returns the doorbell's value. */
static uint32_t run(struct machine *m)
{
    struct kvm_run *r = m->run;
    uint32_t bell = 0;

    while (ioctl(m->vcpu, KVM_RUN, 0) < 0)
        if (errno != EINTR)
            die("KVM_RUN");
    switch (r->exit_reason) {
    case KVM_EXIT_MMIO:
        memcpy(&bell, r->mmio.data, sizeof bell);
        return bell;
    case KVM_EXIT_IO:
        memcpy(&bell, (char *)r + r->io.data_offset, sizeof bell);
        return bell;
    case KVM_EXIT_HYPERCALL:
        r->hypercall.ret = 0;
        return (uint32_t)r->hypercall.args[2];
    }
    errno = 0;
    die("unexpected exit %u", r->exit_reason);
    return 0;
}

/* ---- Places and frames ---- */

static void hold(struct machine *m, const struct extent *e)
{
    if (e->pages >= LARGE) {
        m->large = *e;
        return;
    }
    for (uint32_t i = 0; i < e->pages; i++)
        m->frames[e->page + i] = e->frame + i;
    if (e->page == m->first_free)
        m->first_free += e->pages;
}

static void let_go(struct machine *m, const struct extent *e)
{
    if (e->pages >= LARGE) {
        m->large.pages = 0;
        return;
    }
    for (uint32_t i = 0; i < e->pages; i++)
        m->frames[e->page + i] = NONE;
    if (e->page < m->first_free)
        m->first_free = e->page;
}

static uint32_t alignment(uint32_t pages)
{
    return pages >= GIANT ? GIANT : LARGE;
}

static uint32_t place(const struct machine *m, uint32_t pages)
{
    if (pages >= LARGE)
        return (uint32_t)(m->image->at.window_bytes / PAGE - pages) / alignment(pages) * alignment(pages);
    for (uint32_t page = m->first_free; page + pages <= SMALL_PAGES; page++) {
        uint32_t n = 0;

        while (n < pages && m->frames[page + n] == NONE)
            n++;
        if (n == pages)
            return page;
    }
    errno = ENOSPC;
    die("no place for %u pages", pages);
    return 0;
}

static uint32_t page_of(const struct machine *m, uint64_t gpa)
{
    return (uint32_t)((gpa - m->image->at.window_gpa) / PAGE);
}

/* Splits an extent into runs of adjacent frames; returns how many. */
static uint32_t runs_of(const struct machine *m, const struct pf_extent *x, struct extent *runs)
{
    uint32_t page = page_of(m, x->gpa), n = 0;

    if (x->pages >= LARGE) {
        runs[0] = m->large;
        return 1;
    }
    for (uint32_t i = 0; i < x->pages; i++) {
        uint32_t frame = m->frames[page + i];

        if (n && runs[n - 1].frame + runs[n - 1].pages == frame)
            runs[n - 1].pages++;
        else
            runs[n++] = (struct extent){page + i, 1, frame};
    }
    return n;
}

/* ---- Messages ---- */

/* What leaves a window: to be hidden there and, if it is `brought`, shown in the other one from page `to` on. */
static struct leaving {
    struct extent extent;
    uint32_t to;
    int brought, protection;
} gone[QUEUE * PF_EXTENTS_MAX];
static uint32_t gone_count;

/* Notes what leaves, joined with what it follows; flush_gone() lets it go. */
static void leave(const struct leaving *what)
{
    struct leaving *last = gone_count ? &gone[gone_count - 1] : NULL;
    const struct extent *e = &what->extent;
    int follows = last && last->extent.page + last->extent.pages == e->page && last->brought == what->brought;

    if (follows && what->brought)
        follows = last->extent.frame + last->extent.pages == e->frame && last->to + last->extent.pages == what->to;
    if (follows)
        last->extent.pages += e->pages;
    else
        gone[gone_count++] = *what;
}

static void flush_gone(const struct machine *from, const struct machine *to)
{
    for (uint32_t i = 0; i < gone_count; i++) {
        const struct leaving *what = &gone[i];
        struct extent there = {what->to, what->extent.pages, what->extent.frame};

        if (what->brought && anonymous(&there) && !from->slots) {
            remap(at_page(from, what->extent.page), at_page(to, there.page), there.pages * PAGE);
            hole(from, &what->extent);
        } else {
            hide(from, &what->extent);
            if (what->brought)
                show(to, &there, what->protection);
        }
    }
    gone_count = 0;
}

static struct bench_answer answer;
static int answered;

static struct extent scratch[SMALL_PAGES];

static void serve_alloc(struct machine *m, struct pf_descriptor *d)
{
    uint32_t pages = d->extents[0].pages;
    struct extent e = {place(m, pages), pages, next_frame};

    if (pages >= LARGE) {
        e.frame = (next_large_frame + alignment(pages) - 1) / alignment(pages) * alignment(pages);
        next_large_frame = e.frame + (pages + LARGE - 1) / LARGE * LARGE;
    } else
        next_frame += pages;
    show(m, &e, PROT_READ | PROT_WRITE);
    hold(m, &e);
    d->extents[0].gpa = m->image->at.window_gpa + e.page * PAGE;
}

static void serve_release(struct machine *m, const struct pf_descriptor *d)
{
    uint32_t n = runs_of(m, &d->extents[0], scratch);

    for (uint32_t i = 0; i < n; i++) {
        hide(m, &scratch[i]);
        if (scratch[i].pages >= LARGE) /* there is one at a time */
            next_large_frame = scratch[i].frame;
        if (anonymous(&scratch[i]))
            madvise(home + scratch[i].frame * PAGE, scratch[i].pages * PAGE, MADV_DONTNEED);
        else
            fallocate(pool_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(scratch[i].frame * PAGE),
                      (off_t)(scratch[i].pages * PAGE));
        let_go(m, &scratch[i]);
    }
}

/* What the sender has lent or shared; the receiver returns it before anything else happens. */
static struct extent parted;
static uint16_t parted_by;

static struct queued *enqueue(struct machine *from, struct machine *to, const struct pf_descriptor *d)
{
    struct queued *q = &to->queue[to->queued++];

    memcpy(&q->message, d, sizeof *d);
    q->brought = 0;
    q->message.sender = from == &pair[SENDER] ? 1 : 2;
    return q;
}

static int protection_of(const struct pf_descriptor *d)
{
    return d->flags & PF_FLAG_READONLY ? PROT_READ : PROT_READ | PROT_WRITE;
}

static void serve_send(struct machine *from, struct machine *to, const struct pf_descriptor *d)
{
    struct queued *q = enqueue(from, to, d);

    for (uint32_t i = 0; i < d->extent_count; i++) {
        uint32_t n = runs_of(from, &d->extents[i], scratch), page = place(to, d->extents[i].pages);

        /* One run, to one who waits for it, as all do here: as the monitor does it. */
        q->brought = n == 1 && d->extent_count == 1 && d->operation != PF_OP_SHARE;
        q->message.extents[i].gpa = to->image->at.window_gpa + page * PAGE;
        for (uint32_t j = 0; j < n; j++) {
            struct extent e = scratch[j];

            if (d->operation != PF_OP_SHARE)
                leave(&(struct leaving){e, page, q->brought, protection_of(d)});
            if (d->operation == PF_OP_SEND)
                let_go(from, &e);
            else
                parted = e, parted_by = d->operation;
            e.page = page;
            page += e.pages;
            hold(to, &e);
        }
    }
}

static void serve_return(struct machine *from, struct machine *to, const struct pf_descriptor *d)
{
    struct queued *q = enqueue(from, to, d);

    runs_of(from, &d->extents[0], scratch);
    hide(from, &scratch[0]);
    let_go(from, &scratch[0]);
    if (parted_by == PF_OP_LEND)
        show(to, &parted, PROT_READ | PROT_WRITE);
    q->message.extents[0].gpa = to->image->at.window_gpa + parted.page * PAGE;
}

/* Tells a machine whether the other's queue has room. */
static void tell_room(struct machine *m, int room)
{
    for (uint32_t i = 0; i < m->control->peer_count; i++) {
        volatile struct pf_peer *peer = &m->control->peers[i];

        if (peer->id != PF_PEER_HOST)
            peer->flags = room ? peer->flags | PF_PEER_ROOM : peer->flags & ~(uint32_t)PF_PEER_ROOM;
    }
}

static struct machine *other(const struct machine *m)
{
    return m == &pair[SENDER] ? &pair[RECEIVER] : &pair[SENDER];
}

static void serve(struct machine *from, struct pf_descriptor *d)
{
    struct machine *to = other(from);

    d->status = PF_OK;
    if (d->operation == PF_OP_ALLOC)
        serve_alloc(from, d);
    else if (d->operation == PF_OP_RELEASE)
        serve_release(from, d);
    else if (d->receiver == PF_PEER_HOST) {
        memcpy(&answer, d->payload, sizeof answer);
        answered = 1;
    } else if (to->queued >= to->depth)
        d->status = PF_E_QUEUE_FULL;
    else if (d->operation == PF_OP_RETURN)
        serve_return(from, to, d);
    else
        serve_send(from, to, d);
}

static void after_serving(struct machine *from)
{
    if (other(from)->queued >= other(from)->depth)
        tell_room(from, 0);
    flush_gone(from, other(from));
}

static void transmit(struct machine *from)
{
    for (uint32_t head = from->control->tx_head; from->tx_tail != head; from->tx_tail++)
        serve(from, (void *)&from->control->tx[from->tx_tail % PF_TX_ENTRIES]);
    after_serving(from);
    from->control->tx_tail = from->tx_tail;
}

/* One operation, all of it in the registers of a hypercall: guests/include/pageferry.h. */
static void transmit_direct(struct machine *from)
{
    uint64_t gpa = from->run->hypercall.args[0], pages = from->run->hypercall.args[1];
    uint64_t attributes = from->run->hypercall.args[2];
    struct pf_descriptor d = {
        .operation = attributes >> 8 & 0x3f,
        .flags = attributes & PF_DIRECT_READONLY ? PF_FLAG_READONLY : 0,
        .receiver = attributes >> 16 & PF_DIRECT_PEER_MAX,
        .tag = attributes >> 32,
        .length = pages * PAGE,
        .extent_count = 1,
        .extents = {{.gpa = gpa, .pages = (uint32_t)pages}},
    };

    serve(from, &d);
    after_serving(from);
    from->run->hypercall.ret = (uint64_t)(int64_t)d.status;
}

/* Shows what a machine has been sent, one call for what is adjacent, and puts the messages into its ring. */
static void deliver(struct machine *m)
{
    struct extent next = {0, 0, 0};
    int protection = PROT_READ | PROT_WRITE;

    for (uint32_t i = 0; i < m->queued; i++) {
        struct pf_descriptor *d = &m->queue[i].message;
        uint32_t extents = d->operation == PF_OP_RETURN || m->queue[i].brought ? 0 : d->extent_count;

        for (uint32_t x = 0; x < extents; x++) {
            uint32_t n = runs_of(m, &d->extents[x], scratch);

            protection = protection_of(d);
            for (uint32_t j = 0; j < n; j++) {
                const struct extent *e = &scratch[j];
                int follows = next.page + next.pages == e->page && next.frame + next.pages == e->frame;

                if (next.pages && follows) {
                    next.pages += e->pages;
                    continue;
                }
                if (next.pages)
                    show(m, &next, protection);
                next = *e;
            }
        }
        memcpy((void *)&m->control->rx[m->rx_head++ % PF_RX_ENTRIES], d, sizeof *d);
    }
    if (next.pages)
        show(m, &next, protection);
    if (m->queued >= m->depth)
        tell_room(other(m), 1);
    m->queued = 0;
    m->control->rx_head = m->rx_head;
}

/* ---- Commands ---- */

/* Whether what a machine waits for holds. */
static int holds(const struct machine *m)
{
    if (m->control->wait_for & PF_WAIT_ROOM)
        return other(m)->queued < other(m)->depth;
    return m->queued || m->control->rx_head != m->control->rx_tail;
}

static void command(const struct bench_command *what)
{
    struct pf_descriptor *d = (void *)&pair[SENDER].control->rx[pair[SENDER].rx_head % PF_RX_ENTRIES];
    struct machine *m = &pair[SENDER];

    memset(d, 0, sizeof *d);
    d->operation = PF_OP_SEND;
    d->receiver = 1;
    d->payload_length = sizeof *what;
    memcpy(d->payload, what, sizeof *what);
    m->control->rx_head = ++m->rx_head;
    answered = 0;
    for (;;) {
        m->control->bell_status = PF_OK;
        if (m->queued)
            deliver(m);
        uint32_t bell = run(m);

        if (bell == PF_BELL_TRANSMIT || bell == PF_BELL_TRANSMIT_WAIT)
            transmit(m);
        else if ((bell & 0xff) == PF_BELL_DIRECT) {
            transmit_direct(m);
            continue;
        } else if (bell != PF_BELL_WAIT) {
            errno = 0;
            die("machine %u rang %u: \"%.60s\"", m->control->self, bell, m->memory + m->control->log_gpa);
        }
        if (bell == PF_BELL_TRANSMIT || holds(m))
            continue;
        m = other(m);
        if (!holds(m))
            return; /* both wait for ever */
    }
}

static double tick_ns;

static void measure_ticks(void)
{
    uint64_t start = now(), ticks = __rdtsc(), end;

    while ((end = now()) - start < 20000000)
        ;
    tick_ns = (double)(end - start) / (double)(__rdtsc() - ticks);
}

static void run_command(const char *line)
{
    struct bench_command what = {.peer = 2};
    uint32_t depth;

    if (sscanf(line, "run %u %u %u %u %u %u %u %u", &what.kind, &what.rounds, &what.pages, &what.batch, &what.touch,
               &what.used, &depth, &populate)
        != 8) {
        errno = EINVAL;
        die("bad command: %s", line);
    }
    for (int i = 0; i < 2; i++)
        pair[i].depth = i == RECEIVER ? depth : QUEUE;
    command(&what);
    if (!answered) {
        errno = 0;
        die("no answer to: %s", line);
    }
    const uint64_t *samples = (const void *)(pair[SENDER].memory + answer.samples_gpa);
    for (uint64_t i = 0; i < answer.samples; i++)
        printf("%.0f ", (double)samples[i] * tick_ns);
    printf("\n");
}

/* Makes and destroys machines that exit at once. */
static void spawn_command(int count, int closing)
{
    for (int i = 0; i < count; i++) {
        struct machine m = {.run_bytes = pair[SENDER].run_bytes};
        uint64_t start = now(), spawned, closed;

        make(&m, &images[LEAVER]);
        uint32_t bell = run(&m);

        spawned = now();
        if (bell != PF_BELL_EXIT)
            die("the machine rang %u", bell);
        destroy(&m);
        closed = now();
        printf("%llu ", (unsigned long long)(closing ? closed - spawned : spawned - start));
    }
    printf("\n");
}

/* Makes the machines that there are besides, as large as one that exits. */
static void make_others(size_t run_bytes)
{
    for (uint32_t i = 0; i < others; i++) {
        struct machine *m = calloc(1, sizeof *m);

        m->run_bytes = run_bytes;
        make(m, &images[LEAVER]);
    }
}

/* ---- The scene ---- */

static void read_image(FILE *from, struct image *image)
{
    get(from, &image->at, sizeof image->at);
    image->memory = read_memory(from, image->at.private_bytes, image->at.chunks);
}

static void read_scene(const char *path)
{
    struct scene_head head;
    FILE *from = open_scene(path, "PFSCENE1", &head, sizeof head);

    mover = (enum mover)head.mover;
    others = head.others, many = head.many;
    read_cpuid(from, head.cpuid_count);
    for (int i = 0; i < IMAGES; i++)
        read_image(from, &images[i]);
    fclose(from);
}

int main(int argc, char **argv)
{
    char line[256];

    if (argc != 2 || (kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)) < 0)
        die(argc == 2 ? "/dev/kvm" : "usage: floor SCENE");
    read_scene(argv[1]);
    pool_fd = memfd_create("floor-pool", MFD_CLOEXEC);
    if (pool_fd < 0 || ftruncate(pool_fd, POOL_BYTES) < 0)
        die("memfd");
    home = reserve(POOL_BYTES);
    map(home, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    madvise(home, POOL_BYTES, MADV_HUGEPAGE);
    home[POOL_BYTES - 1] = 1; /* so that all of it has one anon_vma, and what comes home is joined again */
    next_large_frame = POOL_BYTES / PAGE / 2;
    if (others >= many)
        pool = map(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, pool_fd, 0);
    make_others((size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    for (int i = 0; i < 2; i++) {
        pair[i].run_bytes = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
        make(&pair[i], &images[i]);
        pair[i].frames = malloc(SMALL_PAGES * sizeof(uint32_t));
        memset(pair[i].frames, 0xff, SMALL_PAGES * sizeof(uint32_t));
    }
    measure_ticks();
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = '\0';
        if (!strncmp(line, "spawn ", 6) || !strncmp(line, "close ", 6))
            spawn_command(atoi(line + 6), line[0] == 'c');
        else
            run_command(line);
        fflush(stdout);
    }
    return 0;
}
