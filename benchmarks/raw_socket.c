// The least that TCP over loopback costs: two processes of C, blocking calls. Sizes: bytes one way, then of a round trip.
//     raw_socket serve BYTES SMALL          prints its port
//     raw_socket call PORT BYTES SMALL COUNT   for each line read: prints GB/s one way and µs of the median round trip
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void must(int fine, const char *what) {
    if (fine) return;
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static int whole(int fd, char *to, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        const ssize_t got = recv(fd, to + done, bytes - done, 0);
        if (got <= 0) return 0;
        done += (size_t)got;
    }
    return 1;
}

static void give(int fd, const char *from, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        const ssize_t put = send(fd, from + done, bytes - done, MSG_NOSIGNAL);
        must(put > 0, "send");
        done += (size_t)put;
    }
}

static int by_size(const void *a, const void *b) {
    const double first = *(const double *)a, second = *(const double *)b;
    return (first > second) - (first < second);
}

int main(int count, char **words) {
    must(count >= 4, "arguments");
    const int serving = !strcmp(words[1], "serve"), one = 1;
    const size_t bytes = strtoull(words[serving ? 2 : 3], NULL, 10), small = strtoull(words[serving ? 3 : 4], NULL, 10);
    char *memory = malloc(bytes);
    must(memory != NULL, "memory");
    memset(memory, 1, bytes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    must(fd >= 0, "socket");
    char kind;
    if (serving) {
        socklen_t size = sizeof address;
        must(!bind(fd, (struct sockaddr *)&address, size) && !listen(fd, 1), "listen");
        must(!getsockname(fd, (struct sockaddr *)&address, &size), "getsockname");
        printf("%d\n", ntohs(address.sin_port));
        fflush(stdout);
        fd = accept(fd, NULL, NULL);
        must(fd >= 0, "accept");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        while (whole(fd, &kind, 1)) {
            const size_t wanted = kind ? bytes : small - 1;
            if (!whole(fd, memory, wanted)) break;
            give(fd, memory, kind ? 1 : small);
        }
        return 0;
    }
    const size_t rounds = strtoull(words[5], NULL, 10);
    double *taken = malloc(rounds * sizeof *taken);
    must(taken != NULL, "memory");
    address.sin_port = htons((unsigned short)atoi(words[2]));
    must(!connect(fd, (struct sockaddr *)&address, sizeof address), "connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        kind = 1;
        const double start = now();
        give(fd, &kind, 1);
        give(fd, memory, bytes);
        must(whole(fd, &kind, 1), "the peer");
        const double one_way = (double)bytes / (now() - start) / 1e9;
        memory[0] = 0;
        for (size_t at = 0; at < rounds; ++at) {
            const double began = now();
            give(fd, memory, small);
            must(whole(fd, memory + 1, small), "the peer");
            taken[at] = now() - began;
        }
        qsort(taken, rounds, sizeof *taken, by_size);
        printf("%.6f %.6f\n", one_way, taken[rounds / 2] * 1e6);
        fflush(stdout);
    }
    return 0;
}
