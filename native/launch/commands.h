#ifndef VMM_LAUNCH_COMMANDS_H
#define VMM_LAUNCH_COMMANDS_H

#include "launch.h"

/* Carry out the commands of standard input until its end. */
void run_commands(struct vmm_launcher *launcher);
/* The records of a file. */
int read_operations(const char *path, struct vmm_records *out, struct vmm_error *e);

#endif
