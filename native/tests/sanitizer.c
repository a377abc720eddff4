/* Options of the sanitized programs, built in: a workload's start leaves nothing of the environment.
 * No leak check: what a program keeps for its whole life is not freed, and a process that may not be traced
 * cannot be searched. */
const char *__asan_default_options(void);
const char *__ubsan_default_options(void);

const char *__asan_default_options(void) {
    return "abort_on_error=1:detect_leaks=0:quarantine_size_mb=4:detect_stack_use_after_return=1:log_path=" REPORTS;
}

const char *__ubsan_default_options(void) {
    return "print_stacktrace=1";
}
