#include "relay.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int parse_number(const char *text, long low, long high, long *out)
{
    char *end;
    *out = strtol(text, &end, 10);
    return *text && !*end && *out >= low && *out <= high ? 0 : -1;
}

static int parse_target(const char *address, long port, struct port *out)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)&out->target;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&out->target;
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        out->target_size = sizeof *v4;
        return 0;
    }
    if (inet_pton(AF_INET6, address, &v6->sin6_addr) != 1)
        return -1;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    out->target_size = sizeof *v6;
    return 0;
}

static int parse_word(const char *text, const char *no, const char *yes, bool *out)
{
    *out = !strcmp(text, yes);
    return *out || !strcmp(text, no) ? 0 : -1;
}

static bool is_socket(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

int port_parse(const char *text, struct port *out)
{
    char copy[160], *fields[5], *at = copy;
    long fd, port;
    if (strlen(text) >= sizeof copy)
        return -1;
    strcpy(copy, text);
    for (int i = 0; i < 5; i++)
        if (!(fields[i] = strsep(&at, ",")))
            return -1;
    *out = (struct port){.fd = -1};
    if (at || parse_number(fields[0], 3, 1 << 20, &fd) || parse_number(fields[3], 1, 65535, &port) ||
        parse_word(fields[1], "tcp", "udp", &out->udp) ||
        parse_word(fields[4], "hold", "serve", &out->serve) || parse_target(fields[2], port, out))
        return -1;
    out->fd = (int)fd;
    return is_socket(out->fd) ? 0 : -1;
}
