/* The number of descriptors: the monitor holds several for each client and exec, a workload gets what the
 * caller had. */
#include <sys/resource.h>

#include "vmm.h"

static struct rlimit original;
static bool raised;

void vmm_files_raise(void) {
    if (raised || getrlimit(RLIMIT_NOFILE, &original) < 0)
        return;
    struct rlimit more = {.rlim_cur = original.rlim_max, .rlim_max = original.rlim_max};
    raised = setrlimit(RLIMIT_NOFILE, &more) == 0;
}

void vmm_files_restore(void) {
    if (raised)
        setrlimit(RLIMIT_NOFILE, &original);
}
