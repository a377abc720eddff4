#include "shim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Reads one operation of the section `shim`. */
/* Added to now_ms() it does not overflow. */
#define LONGEST_MS (INT64_MAX / 4)

typedef int (*reader)(const struct vmm_record *r, struct config *c, struct vmm_error *e);

static int invalid(const struct vmm_record *r, struct vmm_error *e)
{
    return vmm_fail(e, 125, 0, "launch plan: wrong arguments for the operation %s", r->argv[0]);
}

static int number(const struct vmm_record *r, uint32_t index, int64_t low, int64_t high,
                  int64_t *out, struct vmm_error *e)
{
    char *end;
    errno = 0;
    *out = strtoll(r->argv[index], &end, 10);
    if (errno || *end || end == r->argv[index] || *out < low || *out > high)
        return invalid(r, e);
    return 0;
}

static int flag(const struct vmm_record *r, uint32_t index, bool *out, struct vmm_error *e)
{
    int64_t value;
    if (number(r, index, 0, 1, &value, e))
        return -1;
    *out = value == 1;
    return 0;
}

/* The arguments as a list that ends with NULL, appended to `*list`. */
static int texts(const struct vmm_record *r, const char ***list, struct vmm_error *e)
{
    size_t had = 0;
    while (*list && (*list)[had])
        had++;
    const char **all = realloc(*list, (had + r->argc) * sizeof *all);
    if (!all)
        return vmm_fail(e, 125, ENOMEM, "launch plan");
    for (uint32_t i = 1; i < r->argc; i++)
        all[had + i - 1] = r->argv[i];
    all[had + r->argc - 1] = NULL;
    *list = all;
    return 0;
}

#define TEXT_READER(name, member)                                                                  \
    static int name(const struct vmm_record *r, struct config *c, struct vmm_error *e)            \
    {                                                                                              \
        (void)e;                                                                                   \
        c->member = r->argv[1];                                                                    \
        return 0;                                                                                  \
    }

TEXT_READER(read_id, id)
TEXT_READER(read_run_dir, run_dir)
TEXT_READER(read_state, state_path)
TEXT_READER(read_exec_dir, exec_dir)
TEXT_READER(read_events, events_path)
TEXT_READER(read_boot_id, boot_id)

static int read_event_attrs(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    return texts(r, &c->event_attrs, e);
}

static int read_log(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    if (!strcmp(r->argv[1], "none") && r->argc == 2)
        return 0;
    if (strcmp(r->argv[1], "json-file") || r->argc != 5)
        return invalid(r, e);
    c->log_path = r->argv[2];
    return number(r, 3, -1, INT64_MAX, &c->log_max_size, e) ||
                   number(r, 4, 1, 1000, &c->log_max_files, e)
               ? -1
               : 0;
}

static int read_stdio(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    return flag(r, 1, &c->tty, e) || flag(r, 2, &c->stdin_open, e) || flag(r, 3, &c->stdin_once, e)
               ? -1
               : 0;
}

bool config_restart(const char *policy, enum restart_policy *out)
{
    static const char *const names[] = {"no", "always", "unless-stopped", "on-failure"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(policy, names[i])) {
            *out = i;
            return true;
        }
    return false;
}

static int read_restart(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    return config_restart(r->argv[1], &c->restart) ? number(r, 2, 0, INT32_MAX, &c->restart_max, e)
                                                   : invalid(r, e);
}

static int read_stop(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    int64_t signal;
    if (number(r, 1, 1, 64, &signal, e) || number(r, 2, -1, INT32_MAX, &c->stop_timeout_ms, e))
        return -1;
    c->stop_signal = (int)signal;
    return 0;
}

static int read_reaper(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    return texts(r, &c->reaper, e);
}

static int read_helper(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    return texts(r, &c->helper, e);
}

static int read_helper_fds(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    size_t total = c->helper_fd_count + r->argc - 1;
    int *fds = realloc(c->helper_fds, (total + 1) * sizeof *fds);
    if (!fds)
        return vmm_fail(e, 125, ENOMEM, "launch plan");
    c->helper_fds = fds;
    for (uint32_t i = 1; i < r->argc; i++) {
        int64_t fd;
        if (number(r, i, 3, INT32_MAX - 1, &fd, e))
            return -1;
        fds[c->helper_fd_count++] = (int)fd;
    }
    return 0;
}

static int read_wait_start(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    return flag(r, 1, &c->wait_start, e);
}

static int read_guest(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    return texts(r, &c->guest, e);
}

static int read_channel(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    int64_t gid, uid;
    if (number(r, 2, 0, INT32_MAX, &gid, e) || number(r, 3, 0, INT32_MAX, &uid, e))
        return -1;
    c->channel_path = r->argv[1];
    c->channel_gid = (gid_t)gid;
    c->channel_uid = (uid_t)uid;
    return 0;
}

static int read_guest_timeout(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    return number(r, 1, 1, INT32_MAX, &c->boot_ms, e) || number(r, 2, 1, INT32_MAX, &c->answer_ms, e)
               ? -1
               : 0;
}

static int read_adopt(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    return flag(r, 1, &c->adopt, e);
}

/* health LOG INTERVAL_MS TIMEOUT_MS START_PERIOD_MS START_INTERVAL_MS RETRIES TIMEOUT_TEXT OPERATIONS */
static int read_health(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    struct health_config *h = &c->health;
    *h = (struct health_config){.log_path = r->argv[1], .timeout_text = r->argv[7],
                                .operations = r->argv[8], .operations_size = r->len[8]};
    return number(r, 2, 1, LONGEST_MS, &h->interval_ms, e) ||
                   number(r, 3, 1, LONGEST_MS, &h->timeout_ms, e) ||
                   number(r, 4, 0, LONGEST_MS, &h->start_period_ms, e) ||
                   number(r, 5, 1, LONGEST_MS, &h->start_interval_ms, e) ||
                   number(r, 6, 1, INT32_MAX, &h->retries, e)
               ? -1
               : 0;
}

static const struct {
    const char *name;
    uint32_t min, max; /* arguments after the name */
    reader read;
} readers[] = {
    {"id", 1, 1, read_id},
    {"run-dir", 1, 1, read_run_dir},
    {"state", 1, 1, read_state},
    {"exec-dir", 1, 1, read_exec_dir},
    {"events", 1, 1, read_events},
    {"event-attrs", 0, 4095, read_event_attrs},
    {"log", 1, 4, read_log},
    {"stdio", 3, 3, read_stdio},
    {"restart", 2, 2, read_restart},
    {"stop", 2, 2, read_stop},
    {"reaper", 1, 4095, read_reaper},
    {"helper", 1, 4095, read_helper},
    {"helper-fds", 0, 4095, read_helper_fds},
    {"wait-start", 1, 1, read_wait_start},
    {"boot-id", 1, 1, read_boot_id},
    {"guest", 1, 4094, read_guest},
    {"channel", 3, 3, read_channel},
    {"guest-timeout", 2, 2, read_guest_timeout},
    {"adopt", 1, 1, read_adopt},
    {"health", 8, 8, read_health},
};

static int read_one(const struct vmm_record *r, struct config *c, struct vmm_error *e)
{
    for (size_t i = 0; i < sizeof readers / sizeof *readers; i++) {
        if (strcmp(r->argv[0], readers[i].name))
            continue;
        if (r->argc - 1 < readers[i].min || r->argc - 1 > readers[i].max)
            return invalid(r, e);
        return readers[i].read(r, c, e);
    }
    return vmm_fail(e, 125, 0, "launch plan: unknown operation %s in section shim", r->argv[0]);
}

uid_t config_user(const struct vmm_record *ops, size_t count)
{
    uid_t uid = 0;
    for (size_t i = 0; i < count; i++)
        if (ops[i].argc >= 2 && !strcmp(ops[i].argv[0], "user"))
            uid = (uid_t)strtoul(ops[i].argv[1], NULL, 10);
    return uid;
}

int config_read(const struct vmm_plan *plan, struct config *out, struct vmm_error *e)
{
    *out = (struct config){.stop_signal = 15, .stop_timeout_ms = 10000, .boot_id = "",
                           .boot_ms = 120000, .answer_ms = 30000};
    for (size_t i = 0; i < plan->shim_count; i++)
        if (read_one(&plan->shim[i], out, e))
            return -1;
    if (!out->id || !out->run_dir || !out->state_path)
        return vmm_fail(e, 125, 0, "launch plan: section shim needs id, run-dir and state");
    if (!out->guest != !out->channel_path || (out->adopt && !out->guest))
        return vmm_fail(e, 125, 0, "launch plan: a guest needs guest and channel, adopt needs a guest");
    out->uid = config_user(plan->child, plan->child_count);
    return 0;
}

void config_free(struct config *config)
{
    free(config->event_attrs);
    free(config->reaper);
    free(config->helper);
    free(config->helper_fds);
    free(config->guest);
}
