/* Many cases of forest_cases.h, on this machine or against what another one answered.
 *
 *   run SEED CASES SECONDS     check until either is reached; 0: no bound
 *   write FILE SEED CASES      the same, and put the bytes of each case and its answers into a corpus
 *   check FILE                 answer a corpus: sums must have the same bits; of last steps it is said how many differ, and by how much
 *   replay FILE                one case, as a crash or libFuzzer left it
 * A case that fails is left in the file that FOREST_CASE names, else in forest-case.bin.
 */
#include "forest_cases.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint8_t current[8192];
static size_t current_size;
static const char *left_in = "forest-case.bin";

static void leave_case(int sig) {
    static const char said[] = "the case is in the file that FOREST_CASE names, or forest-case.bin\n";
    const int fd = open(left_in, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0) {
        ssize_t done = write(fd, current, current_size);
        done = write(2, said, sizeof said - 1);
        (void)done;
        close(fd);
    }
    signal(sig, SIG_DFL);
    raise(sig);
}

static uint64_t mix(uint64_t z) {
    z += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* 64 bytes; what follows of a case is drawn from them. */
static void draw_case(uint64_t seed, uint64_t i) {
    current_size = 64;
    for (size_t at = 0; at < current_size; at += 8) {
        const uint64_t z = mix(mix(seed) + 8 * i + at / 8);
        for (size_t j = 0; j < 8; ++j)
            current[at + j] = (uint8_t)(z >> (8 * j));
    }
}

static void put(FILE *to, uint64_t v, size_t size) { /* little endian, wherever */
    for (size_t i = 0; i < size; ++i)
        fputc((int)(v >> (8 * i) & 255), to);
}

static uint64_t get(FILE *from, size_t size) {
    uint64_t v = 0;
    for (size_t i = 0; i < size; ++i) {
        const int c = fgetc(from);
        if (c == EOF) {
            fputs("the corpus ends too early\n", stderr);
            exit(2);
        }
        v |= (uint64_t)c << (8 * i);
    }
    return v;
}

static void report(const forest_counts *c) {
    printf("cases %llu, refused %llu, spoiled but whole %llu, answers %llu\n", (unsigned long long)c->cases, (unsigned long long)c->refused,
           (unsigned long long)c->spoiled_but_whole, (unsigned long long)c->answers);
    for (int level = 0; level < 3; ++level)
        for (int k = 0; k < RI_N_KERNELS && ri_kernel_level(forest_levels[level]); ++k)
            if (ri_kernel_level(forest_levels[level])->kernels[k])
                printf("ran %s %s %llu\n", forest_levels[level], ri_kernel_names[k], (unsigned long long)c->runs[level][k]);
    if (ri_kernel_level(NULL)->recorded)
        printf("ran %s recorded %llu\n", ri_kernel_level(NULL)->level, (unsigned long long)c->recorded);
}

static double distance(uint32_t a, uint32_t b) { /* relative to the larger, or to 1 where both are below it */
    float x, y;
    memcpy(&x, &a, 4);
    memcpy(&y, &b, 4);
    if (!isfinite(x) || !isfinite(y))
        return a == b ? 0.0 : (double)INFINITY;
    const double size = fmax(1.0, fmax(fabs((double)x), fabs((double)y)));
    return fabs((double)x - (double)y) / size;
}

static int check_corpus(FILE *from) {
    forest_counts counts = {0};
    uint64_t n_sums = 0, n_other = 0, n_last = 0, n_last_other = 0, n_reasons_other = 0;
    double far = 0;
    const uint64_t n_cases = get(from, 8);
    for (uint64_t i = 0; i < n_cases; ++i) {
        current_size = (size_t)get(from, 4);
        if (current_size > sizeof current)
            return fputs("no corpus of this program\n", stderr), 2;
        for (size_t j = 0; j < current_size; ++j)
            current[j] = (uint8_t)get(from, 1);
        forest_case c;
        forest_case_make(&c, current, current_size);
        const uint64_t hash = c.hash;
        forest_case_free(&c);
        if (hash != get(from, 8))
            return fprintf(stderr, "case %llu is another one here\n", (unsigned long long)i), 1;
        forest_answers a;
        forest_case_check(current, current_size, &a, &counts);
        const int error = (int)get(from, 4);
        const uint64_t n = get(from, 8);
        if (error != a.error || n != a.n)
            return fprintf(stderr, "case %llu: error %d, %zu answers, expected %d, %llu\n", (unsigned long long)i, a.error, a.n, error,
                           (unsigned long long)n), 1;
        for (size_t j = 0; j < n; ++j, ++n_sums)
            n_other += a.sums[j] != (uint32_t)get(from, 4);
        for (size_t j = 0; j < n; ++j, ++n_last) {
            const uint32_t want = (uint32_t)get(from, 4);
            n_last_other += a.last[j] != want;
            far = fmax(far, distance(a.last[j], want));
        }
        n_reasons_other += a.reasons != get(from, 8);
        free(a.sums);
        free(a.last);
    }
    report(&counts);
    printf("sums %llu, other bits %llu\nlast steps %llu, other bits %llu, at most %.3g apart\n", (unsigned long long)n_sums,
           (unsigned long long)n_other, (unsigned long long)n_last, (unsigned long long)n_last_other, far);
    printf("reasons of %llu forests, other bits %llu\n", (unsigned long long)counts.cases, (unsigned long long)n_reasons_other);
    return n_other != 0 || n_reasons_other != 0;
}

static void write_case(FILE *to, const forest_answers *a) {
    forest_case c;
    forest_case_make(&c, current, current_size);
    put(to, current_size, 4);
    for (size_t j = 0; j < current_size; ++j)
        fputc(current[j], to);
    put(to, c.hash, 8);
    put(to, (uint64_t)a->error, 4);
    put(to, a->n, 8);
    for (size_t j = 0; j < a->n; ++j)
        put(to, a->sums[j], 4);
    for (size_t j = 0; j < a->n; ++j)
        put(to, a->last[j], 4);
    put(to, a->reasons, 8);
    forest_case_free(&c);
}

static int run_many(FILE *to, uint64_t seed, uint64_t n_cases, double seconds) {
    forest_counts counts = {0};
    const time_t end = time(NULL) + (time_t)ceil(seconds);
    for (uint64_t i = 0; (!n_cases || i < n_cases) && (seconds <= 0 || (i & 15) || time(NULL) < end); ++i) {
        forest_answers a;
        draw_case(seed, i);
        forest_case_check(current, current_size, &a, &counts);
        if (to)
            write_case(to, &a);
        free(a.sums);
        free(a.last);
    }
    report(&counts);
    return 0;
}

static FILE *opened(const char *path, const char *how) {
    FILE *f = fopen(path, how);
    if (!f) {
        perror(path);
        exit(2);
    }
    return f;
}

int main(int argc, char **argv) {
    const char *named = getenv("FOREST_CASE");
    left_in = named ? named : left_in;
    signal(SIGABRT, leave_case);
    if (argc == 5 && !strcmp(argv[1], "run"))
        return run_many(NULL, strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), strtod(argv[4], NULL));
    if (argc == 5 && !strcmp(argv[1], "write")) {
        FILE *to = opened(argv[2], "wb");
        put(to, strtoull(argv[4], NULL, 10), 8);
        const int failed = run_many(to, strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), 0);
        return fclose(to) != 0 || failed;
    }
    if (argc == 3 && !strcmp(argv[1], "check"))
        return check_corpus(opened(argv[2], "rb"));
    if (argc == 3 && !strcmp(argv[1], "replay")) {
        forest_counts counts = {0};
        FILE *from = opened(argv[2], "rb");
        current_size = fread(current, 1, sizeof current, from);
        forest_case_check(current, current_size, NULL, &counts);
        report(&counts);
        return 0;
    }
    fputs("usage: run SEED CASES SECONDS | write FILE SEED CASES | check FILE | replay FILE\n", stderr);
    return 2;
}
