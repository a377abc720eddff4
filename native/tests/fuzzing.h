/* What fuzzers share: a corpus that grows by what reaches new code, its mutation, and the end of an input that breaks
 * something (it is written to `fuzz-crash` in the working directory).
 * Built with -fsanitize=address,undefined and -fsanitize-coverage=trace-pc (gcc needs no more than that). */
#ifndef VMM_FUZZING_H
#define VMM_FUZZING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FUZZ_LARGEST = 64 << 10 };

/* `NAME SECONDS SEED…`: `run` gets every input, whose first byte is never mutated. The exit code. */
int fuzz(int argc, char **argv, void (*run)(const uint8_t *data, size_t size));

/* End with the input saved and `format` on standard error unless `holds`. */
void expect(bool holds, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
