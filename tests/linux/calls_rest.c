// Calls on signals, time and the program itself, with arguments that are right and wrong.
#include "calls.h"
#include <asm/prctl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

#undef prlimit64

struct action {
    void *handler;
    unsigned long flags;
    void *restorer;
    unsigned long mask;
};

static void signals(void)
{
    struct action a = {(void *)1, 0, NULL, 0}, old = {(void *)77};
    unsigned long mask = 1UL << (SIGUSR1 - 1) | 1UL << (SIGKILL - 1), was = 5;
    T(rt_sigaction, SIGUSR1, NULL, &old, 8);
    printf("%p\n", old.handler);
    T(rt_sigaction, SIGUSR1, &a, NULL, 8);
    T(rt_sigaction, SIGUSR1, NULL, &old, 8);
    printf("%p\n", old.handler);
    T(rt_sigaction, SIGKILL, &a, NULL, 8);
    T(rt_sigaction, SIGKILL, NULL, &old, 8);
    T(rt_sigaction, SIGSTOP, &a, NULL, 8);
    T(rt_sigaction, 0, &a, NULL, 8);
    T(rt_sigaction, 65, &a, NULL, 8);
    T(rt_sigaction, SIGUSR2, &a, NULL, 4);
    T(rt_sigaction, SIGUSR2, BAD, NULL, 8);
    T(rt_sigaction, SIGUSR2, NULL, BAD, 8);
    T(rt_sigprocmask, SIG_BLOCK, &mask, &was, 8);
    printf("%lx\n", was);
    T(rt_sigprocmask, SIG_BLOCK, NULL, &was, 8);
    printf("%lx\n", was);
    mask = 0;
    T(rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8);
    T(rt_sigprocmask, 99, &mask, NULL, 8);
    T(rt_sigprocmask, 99, NULL, &was, 8);
    T(rt_sigprocmask, SIG_SETMASK, BAD, NULL, 8);
    T(rt_sigprocmask, SIG_SETMASK, &mask, NULL, 4);
    T(rt_sigpending, &was, 8);
    printf("%lx\n", was);
    T(rt_sigpending, BAD, 8);
    T(rt_sigpending, &was, 16);
    int pid = S(getpid);
    T(kill, pid, 0);
    T(kill, pid, SIGUSR1);
    T(kill, pid, SIGCHLD);
    T(kill, pid, 65);
    T(kill, pid, -1);
    T(kill, 1 << 30, 0);
    T(tgkill, pid, pid, SIGUSR1);
    T(tgkill, pid, -1, SIGUSR1);
    T(tkill, -1, SIGUSR1);
    T(tkill, pid, SIGWINCH);
    // One that is blocked, and does what it does when it no longer is.
    mask = 1UL << (SIGTERM - 1);
    S(rt_sigprocmask, SIG_BLOCK, &mask, NULL, 8);
    T(kill, pid, SIGTERM);
    T(rt_sigpending, &was, 8);
    printf("pending %lx\n", was);
    T(rt_sigaction, SIGTERM, &a, NULL, 8);
    T(rt_sigpending, &was, 8);
    printf("pending %lx\n", was);
    T(rt_sigprocmask, SIG_UNBLOCK, &mask, NULL, 8);
    static char stack[65536];
    stack_t s = {stack, 0, sizeof stack}, before;
    T(sigaltstack, NULL, &before);
    printf("%d %zu\n", before.ss_flags, before.ss_size);
    T(sigaltstack, &s, NULL);
    T(sigaltstack, NULL, &before);
    printf("%d %zu %d\n", before.ss_flags, before.ss_size, before.ss_sp == stack);
    s.ss_size = 100;
    T(sigaltstack, &s, NULL);
    s.ss_flags = 77;
    T(sigaltstack, &s, NULL);
    T(sigaltstack, BAD, NULL);
    s = (stack_t){.ss_flags = SS_DISABLE};
    T(sigaltstack, &s, NULL);
    struct timespec t = {0, 1000000}, wrong = {0, 1000000000};
    mask = 1UL << (SIGUSR2 - 1);
    T(rt_sigtimedwait, &mask, NULL, &t, 8);
    T(rt_sigtimedwait, &mask, NULL, &wrong, 8);
    T(rt_sigtimedwait, &mask, NULL, &t, 4);
}

static void times_(void)
{
    struct timespec t, left = {5, 5}, shorter = {0, 1000}, wrong = {0, -1}, negative = {-1, 0};
    struct timeval v;
    T(clock_gettime, CLOCK_REALTIME, &t);
    T(clock_gettime, CLOCK_MONOTONIC, &t);
    T(clock_gettime, CLOCK_PROCESS_CPUTIME_ID, &t);
    T(clock_gettime, CLOCK_THREAD_CPUTIME_ID, &t);
    T(clock_gettime, CLOCK_BOOTTIME, &t);
    T(clock_gettime, CLOCK_TAI, &t);
    T(clock_gettime, 99, &t);
    T(clock_gettime, 10, &t);
    T(clock_gettime, -1, &t);
    T(clock_gettime, CLOCK_REALTIME, BAD);
    T(clock_getres, CLOCK_REALTIME, &t);
    printf("%ld.%09ld\n", t.tv_sec, t.tv_nsec);
    T(clock_getres, CLOCK_REALTIME, NULL);
    T(clock_getres, 99, NULL);
    T(clock_settime, CLOCK_MONOTONIC, &t);
    T(gettimeofday, &v, NULL);
    T(gettimeofday, NULL, NULL);
    T(gettimeofday, BAD, NULL);
    printf("%d\n", S(time, NULL) > 1700000000);
    T(time, BAD);
    T(nanosleep, &shorter, &left);
    T(nanosleep, &wrong, NULL);
    T(nanosleep, &negative, NULL);
    T(nanosleep, BAD, NULL);
    T(clock_nanosleep, CLOCK_MONOTONIC, 0, &shorter, NULL);
    T(clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &shorter, NULL);
    T(clock_nanosleep, 99, 0, &shorter, NULL);
    T(clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &shorter, NULL);
    printf("%d\n", S(times, NULL) != -1);
    T(times, BAD);
    T(alarm, 0);
    struct itimerval none = {{0}}, now;
    T(setitimer, ITIMER_REAL, &none, NULL);
    T(setitimer, 99, &none, NULL);
    T(getitimer, ITIMER_REAL, &now);
    printf("%ld %ld\n", now.it_value.tv_sec, now.it_value.tv_usec);
    T(getitimer, 99, &now);
    uint32_t word = 7;
    T(futex, &word, FUTEX_WAKE, 1, NULL);
    T(futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL);
    T(futex, &word, FUTEX_WAIT, 8, NULL);
    T(futex, &word, FUTEX_WAIT, 7, &shorter);
    T(futex, &word, FUTEX_WAIT, 7, &wrong);
    T(futex, &word, FUTEX_WAIT_BITSET, 7, &shorter, NULL, -1);
    T(futex, &word, FUTEX_WAIT_BITSET, 7, &shorter, NULL, 0);
    T(futex, (char *)&word + 1, FUTEX_WAKE, 1, NULL);
    T(futex, BAD, FUTEX_WAIT, 7, &shorter);
}

static void self(void)
{
    int pid = S(getpid);
    printf("%d %d\n", pid == S(gettid), pid == S(set_tid_address, NULL));
    T(getpgid, 1 << 30);
    T(getsid, 1 << 30);
    T(setpgid, -1, 0);
    T(setpgid, 0, -1);
    T(getpgid, -1);
    struct utsname name;
    T(uname, &name);
    printf("%s %s\n", name.sysname, name.machine);
    T(uname, BAD);
    char text[64] = {0};
    T(prctl, PR_SET_NAME, "a name that is longer than it may be");
    T(prctl, PR_GET_NAME, text);
    printf("%s\n", text);
    T(prctl, PR_SET_NAME, BAD);
    T(prctl, PR_GET_NAME, BAD);
    T(prctl, PR_GET_DUMPABLE);
    T(prctl, PR_SET_DUMPABLE, 99);
    T(prctl, 12345);
    T(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    T(prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    T(prctl, PR_SET_PDEATHSIG, 99);
    T(arch_prctl, 99, text);
    T(arch_prctl, ARCH_SET_GS, 0x12345678);
    T(arch_prctl, ARCH_GET_GS, text);
    printf("%lx\n", *(long *)text);
    T(arch_prctl, ARCH_SET_GS, 1UL << 48);
    T(arch_prctl, ARCH_GET_FS, BAD);
    struct rlimit r, low = {5, 3};
    T(prlimit64, 0, RLIMIT_STACK, NULL, &r);
    T(prlimit64, 0, 99, NULL, &r);
    T(prlimit64, 0, RLIMIT_NOFILE, &low, NULL);
    T(prlimit64, 0, RLIMIT_NOFILE, BAD, NULL);
    T(prlimit64, 0, RLIMIT_NOFILE, NULL, BAD);
    T(prlimit64, 1 << 30, RLIMIT_NOFILE, NULL, &r);
    T(getrlimit, RLIMIT_NOFILE, &r);
    T(getrlimit, 99, &r);
    low = (struct rlimit){64, 64};
    T(setrlimit, RLIMIT_NOFILE, &low);
    T(getrlimit, RLIMIT_NOFILE, &r);
    printf("%ld %ld\n", (long)r.rlim_cur, (long)r.rlim_max);
    T(dup2, 1, 64);
    T(dup2, 1, 63);
    T(close, 63);
    low = (struct rlimit){0, 0};
    T(setrlimit, RLIMIT_CORE, &low);
    T(getrlimit, RLIMIT_CORE, &r);
    printf("%ld %ld\n", (long)r.rlim_cur, (long)r.rlim_max);
    struct rusage u;
    T(getrusage, RUSAGE_SELF, &u);
    T(getrusage, RUSAGE_CHILDREN, &u);
    T(getrusage, 99, &u);
    T(getrusage, RUSAGE_SELF, BAD);
    struct sysinfo info;
    T(sysinfo, &info);
    printf("%d %d\n", info.totalram > 0, info.mem_unit);
    T(sysinfo, BAD);
    T(sched_yield);
    unsigned long cpus[128];
    T(sched_getaffinity, 0, 4, cpus);
    T(sched_getaffinity, 0, 12345, cpus);
    T(sched_getaffinity, 1 << 30, sizeof cpus, cpus);
    T(sched_getaffinity, 0, sizeof cpus, BAD);
    unsigned cpu, node;
    T(getcpu, &cpu, &node, NULL);
    T(getcpu, NULL, NULL, NULL);
    T(getcpu, BAD, NULL, NULL);
    T(sched_getscheduler, 0);
    T(sched_getparam, 0, text);
    T(sched_get_priority_max, SCHED_OTHER);
    T(sched_get_priority_max, SCHED_FIFO);
    T(sched_get_priority_min, SCHED_FIFO);
    T(sched_get_priority_min, 77);
    T(getpriority, PRIO_PROCESS, 0);
    T(getpriority, 99, 0);
    T(getpriority, PRIO_PROCESS, 1 << 30);
    T(setpriority, PRIO_PROCESS, 0, 0);
    T(setpriority, 99, 0, 0);
    T(personality, 0xffffffffL);
    T(wait4, -1, NULL, 0, NULL);
    T(wait4, -1, NULL, 12345678, NULL);
    T(waitid, P_ALL, 0, text, WEXITED, NULL);
    T(waitid, P_ALL, 0, text, 0, NULL);
    T(getrandom, text, 20, 0);
    T(getrandom, text, 20, 77);
    T(getrandom, text, 0, 0);
    T(getrandom, BAD, 20, 0);
    T(getrandom, text, 20, 6);
    T(getgroups, -1, text);
    T(getresuid, text, text, BAD);
    T(set_robust_list, text, 24);
    T(set_robust_list, text, 23);
    T(membarrier, 12345, 0, 0);
    printf("%d\n", S(membarrier, 0, 0, 0) >= 0);
    T(membarrier, 0, 77, 0);
    T(exit_group, 300);
}

int main(void)
{
    setbuf(stdout, NULL);
    signals();
    times_();
    self();
}
