/* tweed.udp.fast: the loop between TUN and UDP socket, outside the interpreter's lock. Built against the stable ABI (abi3).
 *
 *   core = Core(tun, socket, segment, merge_tcp, merge_udp, burst, port)
 *   core.set_table(bytes)     peers.Table.pack(); takes effect with the next packet, states of hosts are kept
 *   core.run(wake)            until the descriptor `wake` is readable or packets wait for an ICMP error: [(counter, header), ...]
 *   core.counters()           numbers in the order of COUNTERS
 *   core.outbound(bytes), core.inbound(sender, bytes, size)   one turn of the same code on bytes, for the tests
 *
 * One thread uses a Core at a time: run() refuses a second one. */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "packet.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#define UDP_GRO 104
#endif

enum { SLOT = VNET + PACKET_MAX + 1, EVENTS_MAX = 8, READS = 64, RECEIVES = 16, BLOCKED_MS = 10, PLAIN_TTL = 128 };

static const char *const COUNTERS[COUNTERS_END] = {
    "tx-packets", "tx-bytes", "tx-sends", "rx-packets", "rx-bytes", "rx-writes", "rx-foreign", "fallbacks",
    "tx-not-ipv4", "tx-length", "tx-ttl", "tx-no-peer", "tx-offload", "tx-queue-full", "tx-refused",
    "rx-stranger", "rx-short", "rx-version", "rx-length", "rx-header-checksum", "rx-source-martian", "rx-source-spoofed", "rx-source-foreign",
    "rx-destination", "rx-ttl", "rx-refused",
};

struct event { int why; unsigned length; uint8_t quote[QUOTE_MAX]; };

typedef struct {
    PyObject_HEAD
    int tun, socket, segment, merge_tcp, merge_udp, running;
    unsigned burst, port;
    struct table table;
    uint64_t counters[COUNTERS_END];
    struct event events[EVENTS_MAX];
    unsigned n_events;
    /* Packets of one size to one host, waiting for more of them. */
    struct burst waiting;
    struct host *to;
    uint8_t (*headers)[HEADERS_MAX];
    uint8_t *slots, *received;
    PyObject *sent; /* in tests: a list instead of TUN and socket */
} Core;

/* ---- TUN to UDP */

static void collect(Core *core, const struct iovec *iov, size_t parts, unsigned per_packet)
{
    for (size_t i = 0; i < parts; i += per_packet) {
        size_t n = 0, at = 0;
        for (unsigned k = 0; k < per_packet; k++) n += iov[i + k].iov_len;
        char *joined = malloc(n ? n : 1);
        if (!joined) { PyErr_NoMemory(); return; }
        for (unsigned k = 0; k < per_packet; k++) {
            memcpy(joined + at, iov[i + k].iov_base, iov[i + k].iov_len);
            at += iov[i + k].iov_len;
        }
        PyObject *packet = PyBytes_FromStringAndSize(joined, (Py_ssize_t)n);
        free(joined);
        if (!packet || PyList_Append(core->sent, packet)) { Py_XDECREF(packet); return; }
        Py_DECREF(packet);
    }
}

/* One system call. 0, or the errno. */
static int send_once(Core *core, const struct host *to, struct iovec *iov, size_t parts, unsigned cut)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)core->port), .sin_addr.s_addr = htonl(to->address)};
    union { char bytes[CMSG_SPACE(sizeof(uint16_t))]; struct cmsghdr align; } control = {.bytes = {0}};
    struct msghdr message = {.msg_name = &address, .msg_namelen = sizeof address, .msg_iov = iov, .msg_iovlen = parts};
    if (cut) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        uint16_t value = (uint16_t)cut;
        c->cmsg_level = IPPROTO_UDP;
        c->cmsg_type = UDP_SEGMENT;
        c->cmsg_len = CMSG_LEN(sizeof value);
        memcpy(CMSG_DATA(c), &value, sizeof value);
    }
    for (int tried = 0;; tried++) {
        core->counters[TX_SENDS]++;
        if (sendmsg(core->socket, &message, MSG_DONTWAIT) >= 0) return 0;
        if ((errno != EAGAIN && errno != EINTR) || tried == 2) return errno;
        struct pollfd writable = {core->socket, POLLOUT, 0};
        poll(&writable, 1, BLOCKED_MS);
    }
}

/* All packets of a burst, `per_packet` parts each. */
static void send_burst(Core *core, struct host *to, struct burst *burst, unsigned per_packet)
{
    if (core->sent) { collect(core, burst->iov, burst->parts, per_packet); return; }
    unsigned segments = burst->segments;
    if (segments > 1 && core->segment && !to->no_segment) {
        int error = send_once(core, to, burst->iov, burst->parts, burst->size);
        if (!error) {
            core->counters[TX_PACKETS] += segments;
            core->counters[TX_BYTES] += burst->bytes;
            return;
        }
        /* EMSGSIZE or EINVAL: longer than the route's MTU; EIO: IPsec on the way, before Linux 6.11 any egress without checksums in hardware.
         * One at a time is right everywhere. Anything else (no route just now) says nothing of bursts. */
        if (error != EMSGSIZE && error != EINVAL && error != EIO) {
            core->counters[error == EAGAIN || error == ENOBUFS ? TX_QUEUE_FULL : TX_REFUSED] += segments;
            return;
        }
        to->no_segment = error;
        core->counters[FALLBACKS]++;
    }
    for (size_t i = 0; i < burst->parts; i += per_packet) {
        size_t n = 0;
        for (unsigned k = 0; k < per_packet; k++) n += burst->iov[i + k].iov_len;
        int error = send_once(core, to, burst->iov + i, per_packet, 0);
        if (!error) {
            core->counters[TX_PACKETS]++;
            core->counters[TX_BYTES] += n;
        } else {
            core->counters[error == EAGAIN || error == ENOBUFS ? TX_QUEUE_FULL : TX_REFUSED]++;
        }
    }
}

static void flush_waiting(Core *core)
{
    if (core->waiting.segments) send_burst(core, core->to, &core->waiting, 1);
    core->waiting.segments = 0;
    core->waiting.parts = core->waiting.bytes = 0;
}

/* A plain peer has a small receive buffer (flannel leaves the kernel's default), which two long bursts would overrun. */
static unsigned burst_limit(const Core *core, const struct host *to) { return to->shown_fast ? SEGMENTS_MAX : core->burst; }

static void note_event(Core *core, int why, const uint8_t *ip, size_t n)
{
    if (core->n_events == EVENTS_MAX) return;
    struct event *event = &core->events[core->n_events++];
    event->why = why;
    event->length = (unsigned)(n < QUOTE_MAX ? n : QUOTE_MAX);
    memcpy(event->quote, ip, event->length);
}

/* A packet as the TUN gave it. Returns true when its bytes wait in core->waiting. */
static int handle_outbound(Core *core, uint8_t *packet, size_t length)
{
    struct outbound out;
    int why = look_outbound(&core->table, packet, length, &out);
    if (why) {
        core->counters[why]++;
        if (why == TX_TTL || why == TX_NO_PEER) note_event(core, why, packet + VNET, length - VNET);
        return 0;
    }
    struct host *to = &core->table.hosts[out.peer->host];
    unsigned most = burst_limit(core, to);
    struct burst *waiting = &core->waiting;
    if (out.cut) {
        flush_waiting(core);
        for (size_t at = 0; at < out.length - out.header;) {
            next_segments(&out, &at, most, core->headers, waiting);
            send_burst(core, to, waiting, 2);
        }
        waiting->segments = 0;
        waiting->parts = waiting->bytes = 0;
        return 0;
    }
    if (waiting->segments && (core->to != to || out.length > waiting->size || waiting->bytes + out.length > DATAGRAM_MAX)) flush_waiting(core);
    if (!waiting->segments) waiting->size = (unsigned)out.length;
    core->to = to;
    waiting->iov[waiting->parts++] = (struct iovec){out.ip, out.length};
    waiting->bytes += out.length;
    waiting->segments++;
    if (out.length < waiting->size || waiting->segments >= most) { /* only the last of a burst may be shorter */
        flush_waiting(core);
        return 0;
    }
    return 1;
}

static void turn_outbound(Core *core)
{
    unsigned slot = 0;
    for (int i = 0; i < READS; i++) {
        uint8_t *packet = core->slots + (size_t)slot * SLOT;
        ssize_t n = read(core->tun, packet, SLOT);
        if (n < 0) break;
        if (handle_outbound(core, packet, (size_t)n)) slot++;
        if (!core->waiting.segments) slot = 0;
        else if (core->waiting.segments == 1 && slot > 1) { /* the others left: the one that waits moves to the front */
            memcpy(core->slots, packet, (size_t)n);
            core->waiting.iov[0].iov_base = core->slots + VNET;
            slot = 1;
        }
    }
    flush_waiting(core);
}

/* ---- UDP to TUN */

static void handle_inbound(Core *core, struct host *from, uint8_t *bytes, size_t length, size_t size)
{
    if (!size || length < size) size = length;
    size_t used = 0;
    do {
        struct inbound in;
        uint8_t *first = bytes;
        int why = next_inbound(&core->table, from->address, bytes, length, size, 1, core->merge_tcp, core->merge_udp, &in, &used);
        if (why) {
            core->counters[why] += in.packets;
            if (why == RX_TTL) note_event(core, why, first, used);
        } else {
            if (core->sent) {
                collect(core, in.iov, in.parts, (unsigned)in.parts);
            } else {
                core->counters[RX_WRITES]++;
                if (writev(core->tun, in.iov, (int)in.parts) < 0) {
                    core->counters[RX_REFUSED] += in.packets;
                } else {
                    core->counters[RX_PACKETS] += in.packets;
                    core->counters[RX_BYTES] += in.bytes;
                }
            }
            core->counters[RX_FOREIGN] += in.foreign ? in.packets : 0;
        }
        bytes += used;
        length -= used;
    } while (length);
}

static void turn_inbound(Core *core)
{
    for (int i = 0; i < RECEIVES; i++) {
        struct sockaddr_in from = {.sin_family = AF_UNSPEC};
        union { char bytes[CMSG_SPACE(sizeof(int)) * 4]; struct cmsghdr align; } control;
        struct iovec iov = {core->received, SLOT};
        struct msghdr message = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &iov, .msg_iovlen = 1,
                                 .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
        ssize_t n = recvmsg(core->socket, &message, MSG_DONTWAIT);
        if (n < 0) break;
        int size = 0, ttl = 0;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) memcpy(&size, CMSG_DATA(c), sizeof size);
            if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) memcpy(&ttl, CMSG_DATA(c), sizeof ttl);
        }
        if (size < 0) size = 0;
        struct host *host = from.sin_family == AF_INET ? find_host(&core->table, ntohl(from.sin_addr.s_addr)) : NULL;
        if (host) {
            host->shown_fast = ttl > PLAIN_TTL; /* outer.py says why */
            handle_inbound(core, host, core->received, (size_t)n, (size_t)size);
        } else core->counters[RX_STRANGER] += size && n ? ((size_t)n + (size_t)size - 1) / (size_t)size : 1;
    }
}

/* Returns 0, or the errno of poll(). */
static int loop(Core *core, int wake)
{
    struct pollfd fds[3] = {{core->tun, POLLIN, 0}, {core->socket, POLLIN, 0}, {wake, POLLIN, 0}};
    while (!core->n_events) {
        if (poll(fds, 3, -1) < 0) return errno;
        if (fds[2].revents) return 0; /* first, so that a busy link never keeps the agent waiting */
        if (fds[0].revents & (POLLERR | POLLHUP | POLLNVAL)) return ENODEV; /* the TUN was deleted */
        if (fds[0].revents) turn_outbound(core);
        if (fds[1].revents) turn_inbound(core);
    }
    return 0;
}

/* ---- Python */

static int by_base(const void *a, const void *b)
{
    uint32_t x = ((const struct peer *)a)->base, y = ((const struct peer *)b)->base;
    return (x > y) - (x < y);
}

static int by_address(const void *a, const void *b)
{
    uint32_t x = ((const struct host *)a)->address, y = ((const struct host *)b)->address;
    return (x > y) - (x < y);
}

static uint32_t take32(const uint8_t **p)
{
    uint32_t value = (uint32_t)(*p)[0] << 24 | (uint32_t)(*p)[1] << 16 | (uint32_t)(*p)[2] << 8 | (*p)[3];
    *p += 4;
    return value;
}

static PyObject *set_table(Core *core, PyObject *arguments)
{
    const char *text;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(arguments, "y#:set_table", &text, &n)) return NULL;
    if (n < 12 || n % 12) { PyErr_SetString(PyExc_ValueError, "a table is 12 bytes, and 12 for each peer"); return NULL; }
    if (core->running) { PyErr_SetString(PyExc_RuntimeError, "run() is under way"); return NULL; }
    const uint8_t *p = (const uint8_t *)text;
    size_t count = (size_t)n / 12 - 1;
    struct table t = {.own = take32(&p), .n_peers = (uint32_t)count};
    t.own_mask = take32(&p), t.strict = take32(&p);
    t.peers = calloc(count + 1, sizeof *t.peers);
    t.hosts = calloc(count + 1, sizeof *t.hosts);
    if (!t.peers || !t.hosts) { free(t.peers); free(t.hosts); return PyErr_NoMemory(); }
    for (size_t i = 0; i < count; i++) {
        t.peers[i].base = take32(&p), t.peers[i].mask = take32(&p), t.peers[i].host = take32(&p);
        t.hosts[i].address = t.peers[i].host;
    }
    qsort(t.peers, count, sizeof *t.peers, by_base);
    qsort(t.hosts, count, sizeof *t.hosts, by_address);
    for (size_t i = 0; i < count; i++) {
        if (t.n_hosts && t.hosts[t.n_hosts - 1].address == t.hosts[i].address) continue;
        struct host host = t.hosts[i];
        const struct host *known = find_host(&core->table, host.address);
        t.hosts[t.n_hosts++] = known ? *known : host;
    }
    for (size_t i = 0; i < count; i++) t.peers[i].host = (uint32_t)(find_host(&t, t.peers[i].host) - t.hosts);
    free(core->table.peers);
    free(core->table.hosts);
    core->table = t;
    Py_RETURN_NONE;
}

static PyObject *take_events(Core *core)
{
    PyObject *list = PyList_New(0);
    for (unsigned i = 0; list && i < core->n_events; i++) {
        const struct event *e = &core->events[i];
        PyObject *item = Py_BuildValue("sy#", COUNTERS[e->why], (const char *)e->quote, (Py_ssize_t)e->length);
        if (!item || PyList_Append(list, item)) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    core->n_events = 0;
    return list;
}

static PyObject *run(Core *core, PyObject *arguments)
{
    int wake, error;
    if (!PyArg_ParseTuple(arguments, "i:run", &wake)) return NULL;
    if (core->running) { PyErr_SetString(PyExc_RuntimeError, "run() is under way"); return NULL; }
    core->running = 1;
    Py_BEGIN_ALLOW_THREADS
    error = loop(core, wake);
    Py_END_ALLOW_THREADS
    core->running = 0;
    if (error && error != EINTR) { errno = error; return PyErr_SetFromErrno(PyExc_OSError); }
    return take_events(core);
}

static PyObject *counters(Core *core, PyObject *Py_UNUSED(none))
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < COUNTERS_END; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(core->counters[i]);
        if (!number || PyList_Append(list, number)) Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

/* [(address, shown fast, errno)] */
static PyObject *hosts(Core *core, PyObject *Py_UNUSED(none))
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < core->table.n_hosts; i++) {
        const struct host *h = &core->table.hosts[i];
        PyObject *item = Py_BuildValue("kii", (unsigned long)h->address, (int)h->shown_fast, (int)h->no_segment);
        if (!item || PyList_Append(list, item)) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *tested(Core *core)
{
    PyObject *sent = core->sent;
    core->sent = NULL;
    if (PyErr_Occurred()) { Py_DECREF(sent); return NULL; }
    return sent;
}

static PyObject *outbound(Core *core, PyObject *arguments)
{
    const char *bytes;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(arguments, "y#:outbound", &bytes, &n)) return NULL;
    if (core->running || n > SLOT) { PyErr_SetString(PyExc_ValueError, "too long, or run() is under way"); return NULL; }
    core->sent = PyList_New(0);
    if (!core->sent) return NULL;
    memcpy(core->slots, bytes, (size_t)n);
    handle_outbound(core, core->slots, (size_t)n);
    flush_waiting(core);
    return tested(core);
}

static PyObject *inbound(Core *core, PyObject *arguments)
{
    const char *bytes;
    Py_ssize_t n, size;
    unsigned long sender;
    if (!PyArg_ParseTuple(arguments, "ky#n:inbound", &sender, &bytes, &n, &size)) return NULL;
    if (core->running || n > SLOT || size < 0) { PyErr_SetString(PyExc_ValueError, "too long, or run() is under way"); return NULL; }
    core->sent = PyList_New(0);
    if (!core->sent) return NULL;
    memcpy(core->received, bytes, (size_t)n);
    struct host *host = find_host(&core->table, (uint32_t)sender);
    if (host) handle_inbound(core, host, core->received, (size_t)n, (size_t)size);
    else core->counters[RX_STRANGER]++;
    return tested(core);
}

static PyObject *events(Core *core, PyObject *Py_UNUSED(none)) { return take_events(core); }

static int initialise(Core *core, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"tun", "socket", "segment", "merge_tcp", "merge_udp", "burst", "port", NULL};
    if (core->slots) { PyErr_SetString(PyExc_RuntimeError, "a Core is made once"); return -1; }
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iipppII:Core", names, &core->tun, &core->socket, &core->segment, &core->merge_tcp,
                                     &core->merge_udp, &core->burst, &core->port)) return -1;
    if (core->burst < 1 || core->burst > SEGMENTS_MAX || core->port < 1 || core->port > 65535) {
        PyErr_SetString(PyExc_ValueError, "burst is 1 to 64, port 1 to 65535");
        return -1;
    }
    core->slots = calloc(READS + 1, SLOT); /* pages of small packets' slots are never touched beyond the first */
    core->received = calloc(1, SLOT);
    core->headers = calloc(SEGMENTS_MAX, HEADERS_MAX);
    if (!core->slots || !core->received || !core->headers) { PyErr_NoMemory(); return -1; }
    return 0;
}

static void deallocate(Core *core)
{
    PyTypeObject *type = Py_TYPE((PyObject *)core);
    free(core->slots);
    free(core->received);
    free(core->headers);
    free(core->table.peers);
    free(core->table.hosts);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(core);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"set_table", (PyCFunction)set_table, METH_VARARGS, NULL},
    {"run", (PyCFunction)run, METH_VARARGS, NULL},
    {"counters", (PyCFunction)counters, METH_NOARGS, NULL},
    {"hosts", (PyCFunction)hosts, METH_NOARGS, NULL},
    {"events", (PyCFunction)events, METH_NOARGS, NULL},
    {"outbound", (PyCFunction)outbound, METH_VARARGS, NULL},
    {"inbound", (PyCFunction)inbound, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, PyType_GenericNew}, {Py_tp_init, initialise}, {Py_tp_dealloc, deallocate}, {Py_tp_methods, methods}, {0, NULL},
};

static PyType_Spec specification = {"tweed.udp.fast.Core", sizeof(Core), 0, Py_TPFLAGS_DEFAULT, slots};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "fast", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_fast(void)
{
    PyObject *module = PyModule_Create(&definition), *type = PyType_FromSpec(&specification), *names = PyTuple_New(COUNTERS_END);
    if (!module || !type || !names) goto failed;
    for (int i = 0; i < COUNTERS_END; i++) {
        PyObject *name = PyUnicode_FromString(COUNTERS[i]);
        if (!name || PyTuple_SetItem(names, i, name)) goto failed;
    }
    if (PyModule_AddObjectRef(module, "Core", type) || PyModule_AddObjectRef(module, "COUNTERS", names)) goto failed;
    Py_DECREF(type);
    Py_DECREF(names);
    return module;
failed:
    Py_XDECREF(module);
    Py_XDECREF(type);
    Py_XDECREF(names);
    return NULL;
}
