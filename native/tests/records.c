/* Unit tests of the record decoder; meant to run under sanitizers (`make check`). */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm.h"

#undef NDEBUG

static void decode_ok(const uint8_t *data, size_t size, size_t count) {
    struct vmm_records records;
    struct vmm_error e = {0};
    assert(vmm_records_decode(data, size, &records, &e) == 0);
    assert(records.count == count);
    vmm_records_free(&records);
}

static void decode_bad(const uint8_t *data, size_t size, const char *said) {
    struct vmm_records records;
    struct vmm_error e = {0};
    assert(vmm_records_decode(data, size, &records, &e) == -1);
    assert(e.code == 125 && strstr(e.message, said));
    assert(!records.items && !records.storage);
}

static uint8_t *encode(const char *const *argv, uint32_t argc, size_t *size) {
    uint32_t len[8];
    uint8_t *out;
    assert(argc <= 8);
    for (uint32_t i = 0; i < argc; i++)
        len[i] = (uint32_t)strlen(argv[i]);
    assert(vmm_record_encode(argc, argv, len, &out, size) == 0);
    return out;
}

static void test_round_trip(void) {
    const char *const argv[] = {"exec", "", "a b", "\xff\xfe"};
    struct vmm_records records;
    struct vmm_error e = {0};
    size_t size;
    uint8_t *data = encode(argv, 4, &size);
    assert(vmm_records_decode(data, size, &records, &e) == 0);
    free(data); /* what was decoded is a copy */
    assert(records.count == 1 && records.items[0].argc == 4);
    for (int i = 0; i < 4; i++) {
        assert(!strcmp(records.items[0].argv[i], argv[i]));
        assert(records.items[0].len[i] == strlen(argv[i]));
    }
    assert(!records.items[0].argv[4]);
    vmm_records_free(&records);
}

static void test_binary_argument(void) {
    uint8_t data[] = {2, 0, 0, 0, 1, 0, 0, 0, 'x', 0, 3, 0, 0, 0, 'a', 0, 'b', 0};
    struct vmm_records records;
    struct vmm_error e = {0};
    assert(vmm_records_decode(data, sizeof data, &records, &e) == 0);
    assert(records.items[0].len[1] == 3 && !memcmp(records.items[0].argv[1], "a\0b", 4));
    vmm_records_free(&records);
}

static void test_limits(void) {
    decode_ok(NULL, 0, 0);
    decode_bad((const uint8_t *)"\1\0\0", 3, "cut off");
    decode_bad((const uint8_t *)"\0\0\0\0", 4, "1 to 4096");
    decode_bad((const uint8_t *)"\1\20\0\0", 4, "1 to 4096");
    decode_bad((const uint8_t *)"\1\0\0\0\1\0\0\0ab", 10, "unterminated");
    decode_bad((const uint8_t *)"\1\0\0\0\xff\xff\xff\xff" "a", 9, "cut off");
    decode_bad((const uint8_t *)"\1\0\0\0\2\0\0\0a\0\0", 11, "contains a NUL");
    uint8_t *large = calloc(1, (16u << 20) + 1);
    assert(large);
    decode_bad(large, (16u << 20) + 1, "16 MiB");
    free(large);
}

/* Every prefix and random changes of a valid list: no crash, no read outside. */
static void test_damage(void) {
    const char *const argv[] = {"mount.fs", "proc", "proc", "/proc", "nosuid", ""};
    size_t size;
    uint8_t *data = encode(argv, 6, &size);
    srand(1);
    for (int round = 0; round < 20000; round++) {
        size_t cut = round < (int)size ? (size_t)round : size;
        uint8_t *copy = malloc(cut ? cut : 1); /* exact, so that the sanitizer sees a byte too far */
        struct vmm_records records;
        struct vmm_error e = {0};
        assert(copy);
        memcpy(copy, data, cut);
        for (int i = 0; i < 3 && cut && round > (int)size; i++)
            copy[(size_t)rand() % cut] = (uint8_t)rand();
        if (vmm_records_decode(copy, cut, &records, &e) == 0)
            vmm_records_free(&records);
        free(copy);
    }
    free(data);
}

int main(void) {
    test_round_trip();
    test_binary_argument();
    test_limits();
    test_damage();
    puts("records: ok");
    return 0;
}
