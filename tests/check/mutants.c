/* SPDX-License-Identifier: BSD-3-Clause */
/* The checker against devices with a deliberate bug (src/devices/bugs.def): each is caught by the
 * rule that it breaks. A device is a process of its own, and so is each run of the checker: both
 * may hang or die.
 *
 *   mutants                    each bug under its own rule
 *   mutants --all DOCUMENT     each bug under all rules, good devices too; writes the table
 *   mutants --bug ID           this one under all rules
 *   mutants --devices          whatever devices they are, do they pass? Ends at the first that does
 * not mutants --document FILE    the document has a row for each bug, and no other */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check/rule.h"
#include "devices/devices.h"

#define REGION  CHECK_DIALECT_REGION
#define FEATURE CHECK_DIALECT_FEATURE
#define BOTH    CHECK_DIALECT_BOTH

#define MAX_RULES    256u
#define MAX_JOBS     512u
#define WATCHDOG_S   90u /* of a run */
#define GOOD_SEEDS   20u
#define DEADLINE_MS  1000u
#define TRIES        8u
#define HURRIED_MS   3000u  /* --devices; who hangs is asked again */
#define PATIENT_MS   20000u /* good devices: a machine that is busy is no device that hangs */
#define MAX_PARALLEL 4u

static const struct bug {
    const char *rule, *id, *device;
    unsigned dialects;
    const char *what;
} bugs[] = {
#define BUG(rule, id, device, dialects, what) {rule, id, device, dialects, what},
#include "devices/bugs.def"
};
#define BUGS ((unsigned)(sizeof(bugs) / sizeof(bugs[0])))

static const struct kind {
    const char *name, *device;
    struct vfmig_device_knobs knobs;
    enum { ALONE, WITH_PEER, BUG_IN_PEER } peer;
} kinds[] = {
    {"null", "null", {0}, ALONE},
    {"dma", "dma", {0}, ALONE},
    {"two dma", "dma", {0}, WITH_PEER},
    {"the peer", "dma", {0}, BUG_IN_PEER},
    {"dma, no NDMA", "dma", {.no_ndma = true, .no_precopy = true}, ALONE},
    {"dma, pre-copy only", "dma", {.no_ndma = true}, ALONE},
    {"dma, NDMA only", "dma", {.no_precopy = true}, ALONE},
    {"dma, slow", "dma", {.latency_ns = 2000000000}, ALONE},
    {"dma, drain in time", "dma", {.drain_timeout_ns = 200000000}, ALONE},
    {"bulk", "bulk", {.state_bytes = 256 << 10}, ALONE},
    {"bulk, 2 MiB", "bulk", {.state_bytes = 2 << 20}, ALONE},
};

/* What came of a job; in memory shared with the process that does it. */
struct outcome {
    bool done;
    char text[200];             /* what was wrong, in the worker's words */
    uint8_t verdict[MAX_RULES]; /* + 1; 0: not run */
};

/* A run of the checker in one dialect. */
struct job {
    const struct bug *bug; /* NULL: a good device */
    const char *device;
    unsigned dialect;
    const char *only; /* NULL: all rules */
    unsigned seeds;
};

static struct job jobs[MAX_JOBS];
static unsigned job_count;
static struct outcome *outcomes;
static bool hurried; /* --devices */
static char folder[] = "/tmp/mutants-XXXXXX";

static const struct kind *find_kind(const char *name)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (!strcmp(kinds[i].name, name))
            return &kinds[i];
    fprintf(stderr, "%s: no such kind of device\n", name);
    exit(1);
}

/* ---- one job -------------------------------------------------------------------------------- */

/* A process that serves the device; it dies with its parent. Returns when it listens. */
static pid_t start_device(const struct kind *kind, const struct bug *bug, const char *path)
{
    struct vfmig_device *device;
    struct vfmig_error error = {0};
    int ready[2];
    char byte = 0;

    if (pipe(ready) < 0)
        return -1;
    pid_t pid = fork();
    if (pid != 0) {
        close(ready[1]);
        ssize_t n = read(ready[0], &byte, 1);
        close(ready[0]);
        return n == 1 ? pid : -1;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ready[0]);
    if (bug) {
        setenv("VFMIG_SABOTAGE", bug->id, 1);
        if (!freopen("/dev/null", "w", stderr)) /* it may die of its bug */
            _exit(1);
    }
    int r = vfmig_device_kind_find(kind->device)->make(&kind->knobs, &device, &error);
    if (r == 0)
        r = vfmig_device_listen(device, path, &error);
    if (r < 0 || write(ready[1], &byte, 1) != 1) {
        fprintf(stderr, "%s\n", error.text);
        _exit(1);
    }
    close(ready[1]);
    vfmig_device_run(device, &error);
    _exit(0);
}

static bool is_explained(const char *why)
{
    static const char *const reasons[] = {"destructive:", "no second device", "no workload that",
                                          "the device gives no data in PRE_COPY",
                                          "the device did not go to ERROR"};

    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (!strncmp(why, reasons[i], strlen(reasons[i])))
            return true;
    return false;
}

static bool is_caught(enum check_verdict verdict)
{
    return verdict == CHECK_FAIL || verdict == CHECK_WARN;
}

static void note_good(struct outcome *out, const struct check_result *result)
{
    if (out->text[0])
        return;
    if (is_caught(result->verdict))
        snprintf(out->text, sizeof(out->text), "%s: %.100s", result->rule->id, result->seen);
    else if (result->verdict == CHECK_SKIPPED && !is_explained(result->why))
        snprintf(out->text, sizeof(out->text), "%s is skipped: %.100s", result->rule->id,
                 result->why);
}

static bool own_caught(const struct bug *bug, const struct outcome *out)
{
    uint8_t verdict = out->verdict[check_rule_find(bug->rule) - check_rules];

    return verdict && is_caught((enum check_verdict)(verdict - 1));
}

static int judge(const struct check_options *options, const struct job *job, struct outcome *out,
                 struct vfmig_error *reterr)
{
    struct check_report report;
    int r = check_run(options, &report, reterr);

    for (unsigned i = 0; r == 0 && i < report.count; i++) {
        const struct check_result *result = &report.results[i];
        out->verdict[result->rule - check_rules] = result->verdict + 1;
        if (!job->bug)
            note_good(out, result);
    }
    check_report_free(&report);
    return r;
}

/* Hung within a hurried deadline may be a busy machine: the rule is asked again with patience. */
static void ask_again(struct check_options *options, const struct job *job, struct outcome *out)
{
    struct vfmig_error error = {0};
    char rule[32];

    if (!hurried || !strstr(out->text, "the device is hung"))
        return;
    snprintf(rule, sizeof(rule), "%.*s", (int)strcspn(out->text, ":"), out->text);
    options->only = (const char *const[]){rule};
    options->only_count = 1;
    options->deadline_ms = PATIENT_MS / 2;
    out->text[0] = 0;
    if (judge(options, job, out, &error) < 0)
        snprintf(out->text, sizeof(out->text), "%.190s", error.text);
    else if (!out->text[0]) { /* it was the machine: all of it, with patience */
        options->only = NULL;
        options->only_count = 0;
        judge(options, job, out, &error);
    }
}

/* In a process of its own. */
static void work(const struct job *job, struct outcome *out)
{
    const struct kind *kind = find_kind(job->device);
    char path[64], peer_path[72], target[80], peer_target[88];
    struct vfmig_error error = {0};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(WATCHDOG_S);
    snprintf(path, sizeof(path), "%s/%d", folder, (int)getpid());
    snprintf(target, sizeof(target), "vfio-user:%s", path);
    snprintf(peer_path, sizeof(peer_path), "%s-peer", path);
    snprintf(peer_target, sizeof(peer_target), "vfio-user:%s", peer_path);
    pid_t device = start_device(kind, kind->peer == BUG_IN_PEER ? NULL : job->bug, path), peer = 0;
    if (kind->peer != ALONE)
        peer = start_device(kind, kind->peer == BUG_IN_PEER ? job->bug : NULL, peer_path);
    struct check_options options = {
        .target = target,
        .peer = peer ? peer_target : NULL,
        .dialects = job->dialect,
        .only = &job->only,
        .only_count = job->only != NULL,
        .allow_destructive = true,
        .repeat = job->seeds,
        .seed = 1,
        .deadline_ms = job->bug  ? DEADLINE_MS
                       : hurried ? HURRIED_MS
                                 : PATIENT_MS,
        .fail_fast = hurried,
        .bare = hurried,
    };
    int r = device < 0 || peer < 0 ? -1 : judge(&options, job, out, &error);
    if (r < 0)
        snprintf(out->text, sizeof(out->text), "%.190s", error.text[0] ? error.text : "no device");
    ask_again(&options, job, out);
    /* What a device does by itself is seen within milliseconds or missed: it is given more of them.
     */
    options.only = job->bug ? &job->bug->rule : NULL;
    options.only_count = 1;
    for (unsigned i = 1; r == 0 && job->bug && i < TRIES && !own_caught(job->bug, out); i++)
        r = judge(&options, job, out, &error);
    out->done = true;
    if (device > 0)
        kill(device, SIGKILL);
    if (peer > 0)
        kill(peer, SIGKILL);
    unlink(path);
    unlink(peer_path);
    _exit(0);
}

/* ---- all jobs ------------------------------------------------------------------------------- */

static void add_job(const struct bug *bug, const char *device, unsigned dialect, const char *only,
                    unsigned seeds)
{
    if (job_count == MAX_JOBS) {
        fprintf(stderr, "more than %u jobs\n", MAX_JOBS);
        exit(1);
    }
    jobs[job_count++] = (struct job){bug, device, dialect, only, seeds};
}

/* own: under the bug's own rule only. only: this bug only, or NULL. */
static void add_bugs(bool own, const char *only)
{
    for (unsigned i = 0; i < BUGS; i++)
        for (unsigned d = REGION; d <= FEATURE; d++)
            if (bugs[i].dialects & d && (!only || !strcmp(bugs[i].id, only)))
                add_job(&bugs[i], bugs[i].device, d, own ? bugs[i].rule : NULL, 1);
}

/* The processes of the others end with this one. */
static bool any_is_bad(unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (outcomes[i].text[0])
            return true;
    return false;
}

static void run_jobs(void)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned room = processors < MAX_PARALLEL ? (unsigned)processors : MAX_PARALLEL, running = 0;

    for (unsigned next = 0; next < job_count || running;) {
        if (hurried && any_is_bad(next))
            return;
        if (next < job_count && running < room) {
            fflush(NULL);
            pid_t pid = fork();
            if (pid == 0)
                work(&jobs[next], &outcomes[next]);
            running += pid > 0;
            next++;
        } else if (wait(NULL) > 0) {
            running--;
        }
    }
}

/* ---- verdicts ------------------------------------------------------------------------------- */

static const char *dialect_name(unsigned dialect)
{
    return dialect == REGION ? "region" : "feature";
}

/* Every bug is caught by its rule; every rule has one. */
static int judge_own(void)
{
    int failed = 0;

    for (unsigned i = 0; i < job_count; i++) {
        const struct bug *bug = jobs[i].bug;
        if (!bug)
            continue;
        if (own_caught(bug, &outcomes[i]))
            continue;
        uint8_t verdict = outcomes[i].verdict[check_rule_find(bug->rule) - check_rules];
        printf("not caught: %s by %s (%s, %s): %s\n", bug->id, bug->rule, bug->device,
               dialect_name(jobs[i].dialect),
               !outcomes[i].done     ? "the watchdog ended it"
               : outcomes[i].text[0] ? outcomes[i].text
               : verdict             ? check_verdict_name((enum check_verdict)(verdict - 1))
                                     : "the rule was not run");
        failed = 1;
    }
    return failed;
}

static int judge_rules(void)
{
    int failed = 0;

    for (unsigned k = 0; k < check_rule_count; k++) {
        bool has = false;
        for (unsigned i = 0; i < BUGS; i++)
            has = has || !strcmp(bugs[i].rule, check_rules[k].id);
        if (!has)
            printf("there is no bug for rule %s\n", check_rules[k].id);
        failed |= !has;
    }
    return failed;
}

/* The first rule that caught it, and all but its own as text. */
static const char *caught_by(const struct outcome *out, const char *own, char *others, size_t room)
{
    const char *first = NULL;
    size_t at = 0;

    others[0] = 0;
    for (unsigned k = 0; k < check_rule_count; k++) {
        if (!out->verdict[k] || !is_caught((enum check_verdict)(out->verdict[k] - 1)))
            continue;
        if (!first)
            first = check_rules[k].id;
        if (strcmp(check_rules[k].id, own) != 0 && at < room)
            at +=
                (size_t)snprintf(others + at, room - at, "%s%s", at ? " " : "", check_rules[k].id);
    }
    return first;
}

/* The part of a bug's row that does not depend on any run. */
static int format_row(const struct job *job, char *text, size_t size)
{
    const struct bug *bug = job->bug;

    return snprintf(text, size, "| %s | %s | %s | %s | %s | ", bug->rule, bug->id, bug->what,
                    bug->device, dialect_name(job->dialect));
}

static void write_row(FILE *out, unsigned i)
{
    char row[512], others[2048];

    if (!jobs[i].bug)
        return;
    const char *first = caught_by(&outcomes[i], jobs[i].bug->rule, others, sizeof(others));
    bool own = first && !strcmp(first, jobs[i].bug->rule);
    format_row(&jobs[i], row, sizeof(row));
    fprintf(out, "%s%s%s | %s |\n", row, own ? "yes" : "after ",
            own     ? ""
            : first ? first
                    : "nothing",
            others);
}

static bool own_first(unsigned i)
{
    char others[2048];
    const char *first = caught_by(&outcomes[i], jobs[i].bug->rule, others, sizeof(others));

    return first && !strcmp(first, jobs[i].bug->rule);
}

/* Each rule is the first to catch some bug: otherwise it adds nothing to those before it. */
static int judge_firsts(void)
{
    int failed = 0;

    for (unsigned k = 0; k < check_rule_count; k++) {
        bool first = false;
        for (unsigned i = 0; i < job_count && !first; i++)
            first = jobs[i].bug && !strcmp(jobs[i].bug->rule, check_rules[k].id) && own_first(i);
        if (!first)
            printf("never the first to catch a bug: %s\n", check_rules[k].id);
        failed |= !first;
    }
    return failed;
}

/* What scripts/mutate.py has written behind the table. Malloc'ed; NULL: nothing. */
static char *read_rest(const char *path)
{
    FILE *in = fopen(path, "re"), *out;
    char line[4096], *rest = NULL;
    size_t size;

    out = in ? open_memstream(&rest, &size) : NULL;
    for (bool is_rest = false; out && fgets(line, sizeof(line), in);) {
        is_rest = is_rest || !strncmp(line, "## ", 3);
        if (is_rest)
            fputs(line, out);
    }
    if (out)
        fclose(out);
    if (in)
        fclose(in);
    return rest;
}

static int write_document(const char *path)
{
    char *rest = read_rest(path);
    FILE *out = fopen(path, "we");

    if (!out) {
        free(rest);
        return 1;
    }
    fprintf(out,
            "# Is the checker right?\n\n"
            "Written by `make check-mutants`. The good devices `null`, `dma` and `bulk` pass all "
            "rules in both dialects with %u seeds each.\nThe devices below have one deliberate bug "
            "each (`vfmig device --bug ID`, `src/devices/bugs.def`); `vfmig check` runs all its\n"
            "rules against each. `own first`: the first rule that did not pass is the one that the "
            "bug is for; each rule has one such bug.\n\n",
            GOOD_SEEDS);
    fputs("| rule | bug | what the device does | device | dialect | own first | others that do "
          "not pass |\n|---|---|---|---|---|---|---|\n",
          out);
    for (unsigned i = 0; i < job_count; i++)
        write_row(out, i);
    if (rest && *rest)
        fprintf(out, "\n%s", rest);
    free(rest);
    return fclose(out) ? 1 : 0;
}

static int judge_good(void)
{
    int failed = 0;

    for (unsigned i = 0; i < job_count; i++) {
        if (jobs[i].bug)
            continue;
        bool good = outcomes[i].done && !outcomes[i].text[0];
        printf("%s: %s, %s, %u seeds: %s\n", good ? "good" : "FALSE ALARM", jobs[i].device,
               dialect_name(jobs[i].dialect), jobs[i].seeds,
               !outcomes[i].done ? "the watchdog ended it"
               : good            ? "passes"
                                 : outcomes[i].text);
        failed |= !good;
    }
    return failed;
}

/* only: this bug, and no document. */
static int run_all(const char *document, const char *only)
{
    static const char *const good[] = {"null", "two dma", "bulk"};

    add_bugs(/* own= */ false, only);
    for (unsigned i = 0; !only && i < 3; i++)
        for (unsigned d = REGION; d <= FEATURE; d++)
            add_job(NULL, good[i], d, NULL, GOOD_SEEDS);
    run_jobs();
    for (unsigned i = 0; i < job_count; i++)
        write_row(stdout, i);
    int failed = judge_own() | judge_good() | judge_rules();
    if (!only)
        failed |= judge_firsts();
    return failed || only ? failed : write_document(document);
}

/* For scripts/mutate.py, which changes the device: whatever device it is now, does it pass? */
static int run_devices(void)
{
    static const struct {
        const char *name, *only;
    } kind[] = {{"two dma", NULL},
                {"dma, no NDMA", NULL},
                {"dma, pre-copy only", "arcs"},
                {"dma, NDMA only", "arcs"},
                {"dma, drain in time", "DRAIN-LONG"},
                {"bulk", NULL}};

    hurried = true;
    for (unsigned i = 0; i < sizeof(kind) / sizeof(kind[0]); i++)
        for (unsigned d = REGION; d <= FEATURE; d++)
            add_job(NULL, kind[i].name, d, kind[i].only, 1);
    run_jobs();
    for (unsigned i = 0; i < job_count; i++)
        if (outcomes[i].text[0]) {
            printf("%s, %s: %s\n", jobs[i].device, dialect_name(jobs[i].dialect), outcomes[i].text);
            return 1;
        }
    for (unsigned i = 0; i < job_count; i++)
        if (!outcomes[i].done) {
            printf("%s, %s: the watchdog ended it\n", jobs[i].device,
                   dialect_name(jobs[i].dialect));
            return 1;
        }
    return 0;
}

/* What workers that were ended early have left. */
static void remove_folder(void)
{
    DIR *dir = opendir(folder);

    for (struct dirent *entry; dir && (entry = readdir(dir));)
        unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
    rmdir(folder);
}

static int run_own(void)
{
    add_bugs(/* own= */ true, NULL);
    run_jobs();
    return judge_own() | judge_rules();
}

/* The document is of this table: make check-mutants writes it again. */
static int compare_document(const char *path)
{
    FILE *in = fopen(path, "re");
    char line[4096], row[512];
    unsigned i = 0;

    add_bugs(/* own= */ true, NULL);
    while (in && fgets(line, sizeof(line), in) && strncmp(line, "## ", 3) != 0) {
        if (strncmp(line, "| ", 2) != 0 || !strncmp(line, "| rule ", 7))
            continue;
        if (i == job_count ||
            strncmp(line, row, (size_t)format_row(&jobs[i], row, sizeof(row))) != 0)
            break;
        i++;
    }
    bool same = in && i == job_count;
    if (in)
        fclose(in);
    if (!same)
        printf("%s is not of this table: make check-mutants writes it\n", path);
    return same ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--document"))
        return compare_document(argv[2]);
    for (unsigned i = 0; i < BUGS; i++)
        if (!check_rule_find(bugs[i].rule)) {
            printf("%s: no rule is called %s\n", bugs[i].id, bugs[i].rule);
            return 1;
        }
    outcomes = mmap(NULL, MAX_JOBS * sizeof(*outcomes), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (outcomes == MAP_FAILED || !mkdtemp(folder)) {
        perror("mutants");
        return 1;
    }
    int failed = argc == 3 && !strcmp(argv[1], "--all")       ? run_all(argv[2], NULL)
                 : argc == 3 && !strcmp(argv[1], "--bug")     ? run_all(NULL, argv[2])
                 : argc == 2 && !strcmp(argv[1], "--devices") ? run_devices()
                                                              : run_own();
    remove_folder();
    return failed;
}
