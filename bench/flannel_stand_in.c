/* As cheap as flannel's meta plugin can be: it looks at subnet.env, keeps the delegate's configuration with fsync, runs the delegate.
 * What flannel would generate is in the file that STAND_IN_CONF names, so no JSON is read or written; flannel's own is a Go program. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char given[1 << 20], config[65536], path[4096];

static long slurp(const char *name, char *to, long room) {
    int file = open(name, O_RDONLY);
    long n = file < 0 ? -1 : read(file, to, room);
    close(file);
    return n;
}

int main(void) {
    int add = !strcmp(getenv("CNI_COMMAND"), "ADD"), ends[2], status;
    while (read(0, given, sizeof given) > 0)
        ;
    snprintf(path, sizeof path, "%s/%s", getenv("STAND_IN_DATA"), getenv("CNI_CONTAINERID"));
    if (add && slurp(getenv("STAND_IN_ENV"), given, sizeof given) < 0)
        return 1;
    long size = slurp(add ? getenv("STAND_IN_CONF") : path, config, sizeof config);
    if (size < 0)
        return !add;
    if (add) {
        int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (write(file, config, size) != size || fsync(file))
            return 1;
        close(file);
    }
    if (pipe(ends))
        return 1;
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[0], 0);
        close(ends[0]);
        close(ends[1]);
        execl("/usr/lib/cni/bridge", "bridge", NULL);
        _exit(127);
    }
    close(ends[0]);
    if (write(ends[1], config, size) != size)
        return 1;
    close(ends[1]);
    waitpid(child, &status, 0);
    if (!add && status == 0)
        unlink(path);
    return status != 0;
}
