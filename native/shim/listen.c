/* A UNIX socket to listen on, where a shim that was killed may have left one. */
#include "shim.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* A socket nobody answers on was left by a shim that died. (One whose queue is full is not: EAGAIN.) */
static bool is_stale(const struct sockaddr_un *address)
{
    VMM_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof *address) == 0)
        return false;
    return errno == ECONNREFUSED && unlink(address->sun_path) == 0;
}

int socket_listen(const char *path, int backlog, int *out, struct vmm_error *e)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const struct sockaddr *generic = (const struct sockaddr *)&address;
    if (strlen(path) >= sizeof address.sun_path)
        return vmm_fail(e, 125, ENAMETOOLONG, "control socket %.300s", path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    *out = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*out < 0)
        return vmm_fail(e, 125, errno, "control socket");
    umask(0177);
    int failed = bind(*out, generic, sizeof address);
    if (failed && errno == EADDRINUSE && is_stale(&address))
        failed = bind(*out, generic, sizeof address);
    umask(0077);
    if (failed && errno == EADDRINUSE)
        return vmm_fail(e, 125, 0, "another shim answers on %s", path);
    if (failed || listen(*out, backlog))
        return vmm_fail(e, 125, errno, "control socket %s", path);
    return 0;
}
