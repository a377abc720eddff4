/* Conventions shared by all native parts of vmm.
 *
 * Functions return 0, or -1 after filling a struct vmm_error. Resources are released by cleanup
 * attributes. No static constructors, no locale, no NSS, no threads. C17.
 */
#ifndef VMM_H
#define VMM_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define VMM_VERSION "0.1.0"
#define VMM_PROTOCOL "1.0"

/* What failed: `code` is the exit code a client reports (125, 126, 127), `err` the errno (0: none),
 * `step` the operation with its first arguments, `message` the whole sentence. */
struct vmm_error {
    int code;
    int err;
    char step[192];
    char message[512];
};

/* Fill `e` (step left alone) and return -1. `err` 0: the message stands alone. */
int vmm_fail(struct vmm_error *e, int code, int err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

void vmm_close(int *fd);
void vmm_free(void *pointer_to_pointer);
#define VMM_CLOSE __attribute__((cleanup(vmm_close)))
#define VMM_FREE __attribute__((cleanup(vmm_free)))

/* Close every descriptor above 2 that is not among the `count` in `keep` (-1: none). Allocates nothing. */
void vmm_close_except(const int *keep, size_t count);

/* seal.c: whether the running program is one that nobody can write to; a descriptor of such a copy of it
 * (close-on-exec; ending the last one costs a grace period, so a program keeps its own); executing that. */
bool vmm_program_sealed(void);
int vmm_program_seal(struct vmm_error *e);
int vmm_program_execute(int program, char **argv, char **environment, struct vmm_error *e);

/* limits.c: as many descriptors as allowed for this process; vmm_files_restore() is for its children. */
void vmm_files_raise(void);
void vmm_files_restore(void);

/* A record: `argc` arguments, each NUL-terminated; `len[i]` does not count the NUL. */
struct vmm_record {
    uint32_t argc;
    char **argv;
    uint32_t *len;
};

struct vmm_records {
    struct vmm_record *items;
    size_t count;
    void *storage; /* what argv and len point into */
};

/* Decode records from `size` bytes; bounded by LAUNCH.md's limits. `data` is copied. */
int vmm_records_decode(const void *data, size_t size, struct vmm_records *out, struct vmm_error *e);
void vmm_records_free(struct vmm_records *records);

/* Encode one record of `argc` strings into `out` (malloc'd; caller frees). */
int vmm_record_encode(uint32_t argc, const char *const *argv, const uint32_t *len, uint8_t **out,
                      size_t *size);

#endif
