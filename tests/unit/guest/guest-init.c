/* The first process of a test guest: loads the modules, mounts root image and disk, lists the
 * image's files into a file on the disk, changes one through an overlay, powers off. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static FILE *out;

static void end(const char *what, const char *which)
{
    if (what)
        printf("FAILED %s %s: %s\n", what, which, strerror(errno));
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
}

static double uptime(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

#define PRIME 0x100000001b3u
struct digest {
    uint64_t value, at;
    int inside;
};

static void feed(struct digest *d, const unsigned char *data, size_t size)
{
    for (size_t i = 0; i < size; i++, d->at++) {
        if (!data[i]) {
            d->inside = 0;
            continue;
        }
        if (!d->inside)
            d->value = (d->value ^ d->at) * PRIME;
        d->inside = 1;
        d->value = (d->value ^ data[i]) * PRIME;
    }
}

static uint64_t fnv(const void *data, size_t size)
{
    struct digest d = {.value = 0xcbf29ce484222325u};
    feed(&d, data, size);
    return d.value;
}

/* Reads the stretches that are no holes. */
static uint64_t content(const char *path)
{
    static unsigned char piece[1 << 16];
    struct digest d = {.value = 0xcbf29ce484222325u};
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        end("open", path);
    off_t start;
    while ((start = lseek(fd, d.at, SEEK_DATA)) >= 0) {
        off_t stop = lseek(fd, start, SEEK_HOLE);
        lseek(fd, start, SEEK_SET);
        if ((uint64_t)start != d.at)
            d.inside = 0;
        d.at = start;
        while ((off_t)d.at < stop) {
            ssize_t n = read(fd, piece, sizeof piece);
            if (n <= 0)
                end("read", path);
            if (n > stop - (off_t)d.at)
                n = stop - d.at;
            feed(&d, piece, n);
        }
    }
    close(fd);
    return d.value;
}

static int compare(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

static void xattrs(const char *path)
{
    static char names[65536], value[65536];
    char *sorted[64];
    int count = 0;
    ssize_t n = llistxattr(path, names, sizeof names);
    for (ssize_t i = 0; i < n && count < 64; i += strlen(names + i) + 1)
        sorted[count++] = names + i;
    qsort(sorted, count, sizeof *sorted, compare);
    for (int i = 0; i < count; i++) {
        ssize_t size = lgetxattr(path, sorted[i], value, sizeof value);
        fprintf(out, " %s=%lx", sorted[i], size < 0 ? 0 : fnv(value, size));
    }
}

static void list(const char *top, const char *below)
{
    char path[8192];
    snprintf(path, sizeof path, "%s/%s", top, below);
    DIR *d = opendir(path);
    if (!d)
        end("opendir", path);
    struct dirent *e;
    while ((e = readdir(d))) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        char name[4096];
        static char target[8192];
        struct stat s;
        snprintf(name, sizeof name, "%s%s%s", below, *below ? "/" : "", e->d_name);
        snprintf(path, sizeof path, "%s/%s", top, name);
        if (lstat(path, &s))
            end("lstat", path);
        for (unsigned char *c = (unsigned char *)name; *c; c++)
            fprintf(out, *c > 32 && *c < 127 ? "%c" : "\\%02x", *c);
        fprintf(out, " %o %u %u ", s.st_mode, s.st_uid, s.st_gid);
        if (S_ISDIR(s.st_mode))
            fprintf(out, "- - ");
        else
            fprintf(out, "%lu %ld ", s.st_nlink, s.st_size);
        uint64_t digest = 0;
        if (S_ISREG(s.st_mode))
            digest = content(path);
        else if (S_ISLNK(s.st_mode))
            digest = fnv(target, readlink(path, target, sizeof target));
        fprintf(out, "%ld.%ld %u:%u %lx", s.st_mtim.tv_sec, s.st_mtim.tv_nsec,
                major(s.st_rdev), minor(s.st_rdev), digest);
        xattrs(path);
        fputc('\n', out);
        if (S_ISDIR(s.st_mode))
            list(top, name);
    }
    closedir(d);
}

static void modules(void)
{
    char line[256], path[300];
    FILE *f = fopen("/modules/order", "r");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        snprintf(path, sizeof path, "/modules/%s", line);
        int fd = open(path, O_RDONLY);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
            end("module", line);
        close(fd);
    }
}

int main(void)
{
    mkdir("/sys", 0755), mkdir("/image", 0755), mkdir("/disk", 0755), mkdir("/root", 0755);
    mount("sys", "/sys", "sysfs", 0, 0);
    mount("dev", "/dev", "devtmpfs", 0, 0);
    modules();
    printf("MODULES %.3f\n", uptime());
    for (int i = 0; i < 500 && (access("/dev/vda", F_OK) || access("/dev/vdb", F_OK)); i++)
        usleep(10000);
    if (mount("/dev/vda", "/image", "erofs", MS_RDONLY, 0))
        end("mount", "image");
    if (mount("/dev/vdb", "/disk", "ext4", 0, 0))
        end("mount", "disk");
    mkdir("/disk/upper", 0755), mkdir("/disk/work", 0755);
    if (mount("root", "/root", "overlay", 0,
              "lowerdir=/image,upperdir=/disk/upper,workdir=/disk/work"))
        end("mount", "overlay");
    printf("MOUNTED %.3f\n", uptime());
    out = fopen("/disk/manifest", "w");
    list("/image", "");
    fclose(out);
    out = fopen("/root/sizes/1", "a");
    if (!out || fputs("changed", out) < 0 || fclose(out))
        end("write", "sizes/1");
    umount("/root"), umount("/disk");
    printf("DONE %.3f\n", uptime());
    end(NULL, NULL);
}
