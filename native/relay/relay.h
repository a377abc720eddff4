/* vmm-relay: carries published ports of loopback addresses to a workload's address. */
#ifndef RELAY_H
#define RELAY_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum {
    CONNECTIONS_MAX = 1024,
    FLOWS_MAX = 1024,
    BUFFER = 64 << 10,
    FLOW_IDLE_MS = 60000,
};

/* One argument: FD,tcp|udp,TARGETIP,PORT,serve|hold */
struct port {
    int fd;
    bool udp, serve;
    struct sockaddr_storage target;
    socklen_t target_size;
};

int port_parse(const char *text, struct port *out);

typedef void (*ready_handler)(void *object, short events);
void watch(int fd, short events, ready_handler handler, void *object);
int64_t now_ms(void);
extern uint8_t scratch[BUFFER];
extern unsigned connection_limit, flow_limit;

int tcp_open(struct port *port);
void tcp_watch(struct port *port);
void tcp_watch_all(void);
void tcp_sweep(void);
int64_t tcp_deadline(void);

void udp_open(struct port *port);
void udp_watch(struct port *port);
void udp_watch_all(void);
void udp_sweep(int64_t now);
int64_t udp_deadline(void);

#endif
