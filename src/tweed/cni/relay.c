/* CNI plugin of tweed: hands the call to the agent and its answer back. It understands nothing but VERSION.
 *
 * relay.py does the same: the protocol is in tweed's wire/cni.py, the files in agent/spool.py. Built by `tweed cni install`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define TRIES 195 /* of STEP_MS each: ten seconds */
#define STEP_MS 50
#define ANSWER_S 60 /* how long an agent may take, and how many tries it then was */
#define UNANSWERED 100
#define QUEUE_MAX 1000
#define STDIN_MAX (1 << 20)
#define VERSIONS "[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]"
#define NO_AGENT "\"msg\":\"no agent of tweed runs on this node, and none has since it was started\",\"details\":\"start one: tweed agent\"}"

extern char **environ;

struct bytes {
    char *data;
    size_t size, room;
};

static struct bytes standard_input, call;
static char run_dir[PATH_MAX] = "/run/tweed";
static const char *command;
static int descriptors[4], descriptor_count;

static void append(struct bytes *to, const void *data, size_t size) {
    if (to->size + size + 1 > to->room) {
        to->room = (to->size + size + 1) * 2;
        if (!(to->data = realloc(to->data, to->room)))
            _exit(1);
    }
    memcpy(to->data + to->size, data, size);
    to->size += size;
    to->data[to->size] = 0;
}

/* Returns 0, or -1 when not all could be written. */
static int write_all(int descriptor, const char *data, size_t size) {
    while (size) {
        ssize_t n = write(descriptor, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        data += n;
        size -= n;
    }
    return 0;
}

static void read_stdin(void) {
    char part[65536];
    ssize_t n;
    append(&standard_input, "", 0);
    while (standard_input.size <= STDIN_MAX && (n = read(0, part, sizeof part)) != 0) {
        if (n < 0 && errno != EINTR)
            break;
        if (n > 0)
            append(&standard_input, part, n);
    }
}

/* The configuration's cniVersion, without understanding the rest. */
static const char *version(void) {
    static char found[33];
    static const char key[] = "\"cniVersion\"", blanks[] = " \t\r\n", good[] = "0123456789abcdefghijklmnopqrstuvwxyz.+-";
    char *at = memmem(standard_input.data, standard_input.size, key, sizeof key - 1);
    if (!at)
        return "1.1.0";
    at += sizeof key - 1;
    at += strspn(at, blanks);
    at += *at != 0;
    at += strspn(at, blanks);
    at += *at != 0;
    size_t size = strspn(at, good);
    if (size == 0 || size > 32 || at[size] != '"')
        return "1.1.0";
    memcpy(found, at, size);
    return found;
}

static void refuse(int code, const char *rest) {
    printf("{\"cniVersion\":\"%s\",\"code\":%d,%s", version(), code, rest);
    fflush(stdout);
    _exit(1);
}

static void keep(int descriptor) {
    if (descriptor >= 0)
        descriptors[descriptor_count++] = descriptor;
}

/* The namespace, and where we may enter it an rtnetlink socket in it, IPv6's settings as seen from inside, and a packet socket. */
static void open_inside(void) {
    const char *path = getenv("CNI_NETNS");
    if (path)
        keep(open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (descriptor_count == 0 || !strcmp(command, "DEL") || setns(descriptors[0], CLONE_NEWNET))
        return;
    keep(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
    if (!strcmp(command, "ADD"))
        keep(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
    keep(open("/proc/sys/net/ipv6/conf", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static void close_inside(void) {
    while (descriptor_count)
        close(descriptors[--descriptor_count]);
}

/* Returns 1 with the agent's answer, 0 when it went away without one, -1 when there is no agent. */
static int ask(struct bytes *answer) {
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (agent < 0 || snprintf(where.sun_path, sizeof where.sun_path, "%s/cni.sock", run_dir) >= (int)sizeof where.sun_path ||
        connect(agent, (void *)&where, sizeof where)) {
        close(agent);
        return -1;
    }
    open_inside();
    struct timeval patience = {.tv_sec = ANSWER_S};
    setsockopt(agent, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof descriptors)];
    } control = {0};
    struct iovec part = {call.data, call.size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (descriptor_count) {
        size_t size = descriptor_count * sizeof *descriptors;
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(size);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(rights), descriptors, size);
    }
    ssize_t sent = sendmsg(agent, &message, MSG_NOSIGNAL), n;
    close_inside(); /* the agent has its own now: a packet socket's last close takes long */
    answer->size = 0;
    while (sent >= 0 && (size_t)sent < call.size) {
        n = send(agent, call.data + sent, call.size - sent, MSG_NOSIGNAL);
        sent = n < 0 ? n : sent + n;
    }
    if (sent >= 0) {
        char data[65536];
        shutdown(agent, SHUT_WR);
        while ((n = read(agent, data, sizeof data)) > 0)
            append(answer, data, n);
        if (n < 0)
            answer->size = 0;
    }
    close(agent);
    return answer->size > 0;
}

/* Leave the call for the agent's next start. Returns 0, or -1 when that cannot be done. */
static int queue(void) {
    char path[PATH_MAX + 32], partial[PATH_MAX + 32];
    mkdir(run_dir, 0755);
    snprintf(path, sizeof path, "%s/cni-queue", run_dir);
    mkdir(path, 0700);
    for (int number = 0; number < QUEUE_MAX; number++) {
        snprintf(path, sizeof path, "%s/cni-queue/%d", run_dir, number);
        snprintf(partial, sizeof partial, "%s/cni-queue/.%d", run_dir, number);
        if (access(path, F_OK) == 0)
            continue;
        int file = open(partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (file < 0 && errno == EEXIST)
            continue;
        if (file < 0)
            return -1;
        int failed = write_all(file, call.data, call.size) || link(partial, path), why = errno;
        close(file);
        unlink(partial);
        if (!failed)
            return 0;
        if (why != EEXIST && why != ENOENT) /* an agent that starts clears what is half written */
            return -1;
    }
    return -1;
}

/* The first bytes of a file. Returns how many. */
static size_t read_file(const char *path, char *to, size_t room) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? 0 : read(file, to, room - 1);
    close(file);
    to[n > 0 ? n : 0] = 0;
    return n > 0 ? n : 0;
}

int main(void) {
    static char text[65536];
    char path[PATH_MAX + 32];
    command = getenv("CNI_COMMAND") ? getenv("CNI_COMMAND") : "";
    struct bytes answer = {0};
    read_stdin();
    if (!strcmp(command, "VERSION")) {
        printf("{\"cniVersion\":\"%s\",\"supportedVersions\":%s}", version(), VERSIONS);
        return fflush(stdout) ? 1 : 0;
    }
    ssize_t n = readlink("/proc/self/exe", text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    snprintf(path, sizeof path, "%s/tweed.agent", dirname(text));
    char line[PATH_MAX];
    if (read_file(path, line, sizeof line) && line[0] != '\n') {
        line[strcspn(line, "\n")] = 0;
        memcpy(run_dir, line, sizeof line);
    }
    append(&call, "tweed-cni=1", sizeof "tweed-cni=1");
    for (char **each = environ; *each; each++)
        if (!strncmp(*each, "CNI_", 4) && strncmp(*each, "CNI_PATH=", 9))
            append(&call, *each, strlen(*each) + 1);
    append(&call, "", 1);
    append(&call, standard_input.data, standard_input.size);
    for (int tries = 0; tries < TRIES;) {
        int answered = ask(&answer);
        if (answered > 0) {
            char *end = answer.data + answer.size, *log = answer.data + 1, *document = log + strlen(log) + 1;
            if (*log && (write_all(2, log, strlen(log)) || write_all(2, "\n", 1)))
                return 1;
            if (document < end && write_all(1, document, end - document))
                return 1;
            return answer.data[0];
        }
        if (answered == 0 && !strcmp(command, "ADD")) { /* whether it was carried out nobody knows: it is to be taken back */
            if (queue())
                refuse(5, "\"msg\":\"the agent went away while it attached the container, and this cannot be written down: DEL it\"}");
            break;
        }
        if (!strcmp(command, "DEL")) {
            if (!queue())
                return 0;
            snprintf(text, sizeof text, "\"msg\":\"no agent of tweed runs on this node, and the queue of DELs cannot be written or is full: %s/cni-queue\"}", run_dir);
            refuse(11, text);
        }
        tries += answered < 0 ? 1 : UNANSWERED;
        usleep(STEP_MS * 1000);
    }
    snprintf(path, sizeof path, "%s/cni-away", run_dir);
    refuse(!strcmp(command, "STATUS") ? 50 : 11, read_file(path, text, sizeof text) ? text : NO_AGENT);
}
