/* What the shim needs of Linux alone. */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <linux/sockios.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Deliver SIGCHLD and SIGTERM through a descriptor, ignore what is sent by mistake. */
int platform_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    static const int ignored[] = {SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGUSR1, SIGUSR2, SIGALRM,
                                  SIGTSTP, SIGTTIN, SIGTTOU};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        signal(ignored[i], SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    if (sigprocmask(SIG_SETMASK, &set, NULL))
        return -1;
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

bool platform_signal_next(int fd, int *signal)
{
    struct signalfd_siginfo info;
    if (read(fd, &info, sizeof info) != sizeof info)
        return false;
    *signal = (int)info.ssi_signo;
    return true;
}

/* proc_pid_stat(5), field 22; the command in field 2 may hold anything, so count from its end. */
uint64_t platform_process_start(pid_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    VMM_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return 0;
    text[n] = 0;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

int platform_pidfd(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

int platform_kill(int pidfd, int signal)
{
    return (int)syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0);
}

int platform_kill_group(pid_t leader, int signal)
{
    return leader > 1 ? kill(-leader, signal) : -1;
}

/* unix(7), SO_PEERCRED: root or the shim's own user. */
bool platform_peer_allowed(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size))
        return false;
    return peer.uid == 0 || peer.uid == geteuid();
}

/* Whether the peer of a UNIX socket has read all that was sent: the queue is empty, and not because
 * the peer went away without reading it (then ECONNRESET is pending). */
bool platform_delivered(int fd)
{
    int bytes = 0;
    char byte;
    if (ioctl(fd, SIOCOUTQ, &bytes) || bytes)
        return false;
    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno == EAGAIN;
}

/* The other side of a terminal, whatever mount namespace its name lives in (ioctl_tty(2)). */
int platform_tty_slave(int master)
{
    return ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

/* A descriptor of a protected copy of the program, kept over execve(2) and known to it by its number. */
int platform_seal(struct vmm_error *e)
{
    int program = vmm_program_seal(e);
    if (program >= 0)
        fcntl(program, F_SETFD, 0);
    return program;
}

/* No core dump, no /proc/PID/mem for others; memory goes back to the system when freed. A session
 * keyring of the shim's own, so that no process it starts holds the keys of whoever started it. */
void platform_harden(void)
{
    prctl(PR_SET_DUMPABLE, 0);
    syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 64 << 10);
    mallopt(M_TRIM_THRESHOLD, 64 << 10);
    mallopt(M_TOP_PAD, 4096);
#endif
}

/* Give whole pages of a scratch area back; they read as zero afterwards (madvise(2)). */
void platform_release(void *area, size_t size)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)area + page - 1) & ~(page - 1);
    uintptr_t to = ((uintptr_t)area + size) & ~(page - 1);
    if (to > from)
        madvise((void *)from, to - from, MADV_DONTNEED);
}

/* The stack below this function was used by calls that have returned. */
__attribute__((noinline)) void platform_release_stack(void)
{
    enum { DEPTH = 256 << 10, NEAR = 1 << 10 }; /* NEAR: what the calls in here take */
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    platform_release((void *)(here - DEPTH), DEPTH - NEAR);
}

/* Free memory inside the heap, too. */
void platform_release_heap(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

void platform_die_with_parent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}
