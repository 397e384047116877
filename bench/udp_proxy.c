/* What bench/udp_mode.py measures against, and with.
 *
 *   udp_proxy proxy TUN LOCAL PORT NETWORK MASK HOST   the way of flannel's UDP mode: poll, one packet per system call, both ways
 *   udp_proxy flood HOST PORT SECONDS                  64-byte datagrams as fast as one thread sends
 *   udp_proxy count PORT SECONDS                       how many arrive */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static uint8_t packet[65536];

static int lower_ttl(uint8_t *ip)
{
    if (ip[8] <= 1) return 0;
    ip[8]--;
    uint32_t c = (ip[10] << 8 | ip[11]) + 0x100;
    c = (c & 0xffff) + (c >> 16);
    ip[10] = c >> 8, ip[11] = c;
    return 1;
}

static struct sockaddr_in address(const char *host, const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, host, &a.sin_addr);
    return a;
}

static int proxy(char **argv)
{
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK), sock = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strncpy(request.ifr_name, argv[0], IFNAMSIZ - 1);
    struct sockaddr_in local = address(argv[1], argv[2]), peer = address(argv[5], argv[2]);
    uint32_t network = inet_addr(argv[3]), mask = inet_addr(argv[4]), to;
    /* An earlier process may have left offloads on. */
    if (ioctl(tun, TUNSETIFF, &request) || ioctl(tun, TUNSETOFFLOAD, 0) || bind(sock, (void *)&local, sizeof local)) return perror("proxy"), 1;
    struct pollfd fds[2] = {{tun, POLLIN, 0}, {sock, POLLIN, 0}};
    for (;;) {
        poll(fds, 2, -1);
        for (int busy = 1; busy;) { /* while there is work, without asking */
            busy = 0;
            ssize_t n = read(tun, packet, sizeof packet);
            if (n >= 20) {
                busy = 1;
                memcpy(&to, packet + 16, 4);
                if ((to & mask) == network && lower_ttl(packet)) sendto(sock, packet, n, 0, (void *)&peer, sizeof peer);
            }
            n = recv(sock, packet, sizeof packet, 0);
            if (n >= 20) {
                busy = 1;
                if (lower_ttl(packet) && write(tun, packet, n) < 0) perror("write");
            }
        }
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    if (argc == 8 && !strcmp(argv[1], "proxy")) return proxy(argv + 2);
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    long count = 0;
    if (argc == 5 && !strcmp(argv[1], "flood")) {
        struct sockaddr_in to = address(argv[2], argv[3]);
        double end = now() + atof(argv[4]);
        if (connect(sock, (void *)&to, sizeof to)) return perror("flood"), 1;
        do {
            for (int i = 0; i < 64; i++) count += send(sock, packet, 64, 0) == 64;
        } while (now() < end);
    } else if (argc == 4 && !strcmp(argv[1], "count")) {
        struct sockaddr_in local = address("0.0.0.0", argv[2]);
        struct timeval patience = {0, 100000};
        int room = 8 << 20;
        double end = now() + atof(argv[3]);
        setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
        setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (bind(sock, (void *)&local, sizeof local)) return perror("count"), 1;
        puts("ready"), fflush(stdout);
        while (now() < end) count += recv(sock, packet, sizeof packet, 0) >= 0;
    } else {
        return fprintf(stderr, "see the beginning of udp_proxy.c\n"), 2;
    }
    printf("%ld\n", count);
    return 0;
}
