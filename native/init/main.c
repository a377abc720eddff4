/* vmm-init: the first process, of a container (`--init`) or of a virtual machine.
 *
 * vmm-init PROGRAM ARGV…       in a container; the launcher's socket is descriptor 3 (container.c)
 * /init, run by the kernel     in a virtual machine: boots it (boot.c), then carries out what the host asks for
 * vmm-init --guest-channel FD  the latter over FD, without booting; ends with the channel
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

static bool has_launcher(void) {
    struct stat st;
    return fstat(LAUNCHER, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* The kernel hands the words of its command line that it does not know to us, so arguments tell nothing. A
 * container has its /proc and was not unpacked from an initramfs. */
static bool is_booted(void) {
    return getpid() == 1 && !has_launcher() && access("/proc/self", F_OK) < 0 &&
           access("/init", X_OK) == 0;
}

int main(int argc, char **argv) {
    if (is_booted())
        boot_main();
    if (argc == 3 && !strcmp(argv[1], "--guest-channel"))
        return guest_main(atoi(argv[2]));
    if (argc >= 3 && has_launcher())
        return container_main(argv);
    fputs("vmm-init is run by vmm, as the first process of a container or virtual machine\n", stderr);
    return 125;
}
