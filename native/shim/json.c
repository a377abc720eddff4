#include "json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

void text_add(struct text *t, const char *data, size_t size)
{
    if (t->full || t->capacity - t->size < size) {
        t->full = true;
        return;
    }
    memcpy(t->at + t->size, data, size);
    t->size += size;
}

void text_puts(struct text *t, const char *string)
{
    text_add(t, string, strlen(string));
}

void text_format(struct text *t, const char *format, ...)
{
    char line[128];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= sizeof line)
        t->full = true;
    else
        text_add(t, line, (size_t)n);
}

/* The allowed range of the second byte after `first` (RFC 3629, section 4). */
static bool second_ok(uint8_t first, uint8_t second)
{
    switch (first) {
    case 0xe0: return second >= 0xa0 && second <= 0xbf;
    case 0xed: return second >= 0x80 && second <= 0x9f;
    case 0xf0: return second >= 0x90 && second <= 0xbf;
    case 0xf4: return second >= 0x80 && second <= 0x8f;
    default: return second >= 0x80 && second <= 0xbf;
    }
}

static size_t utf8_expected(uint8_t first)
{
    if (first < 0x80)
        return 1;
    if (first >= 0xc2 && first <= 0xdf)
        return 2;
    if (first >= 0xe0 && first <= 0xef)
        return 3;
    return first >= 0xf0 && first <= 0xf4 ? 4 : 0;
}

size_t utf8_length(const uint8_t *p, size_t size)
{
    size_t n = size ? utf8_expected(p[0]) : 0;
    if (n == 0 || n > size || (n > 1 && !second_ok(p[0], p[1])))
        return 0;
    for (size_t i = 2; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return n;
}

size_t utf8_boundary(const uint8_t *p, size_t size)
{
    for (size_t back = 1; back <= 3 && back < size; back++) {
        uint8_t first = p[size - back];
        if (first >= 0xc0)
            return utf8_expected(first) > back ? size - back : size;
        if (first < 0x80)
            break;
    }
    return size;
}

static void escape_ascii(struct text *t, uint8_t c)
{
    if (c == '"' || c == '\\')
        text_add(t, (char[]){'\\', (char)c}, 2);
    else if (c == '\n')
        text_puts(t, "\\n");
    else if (c == '\r')
        text_puts(t, "\\r");
    else
        text_format(t, "\\u%04x", c);
}

static bool is_plain(uint8_t c)
{
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&';
}

/* One sequence outside ASCII; returns the bytes taken. */
static size_t escape_wide(struct text *t, const uint8_t *p, size_t size)
{
    size_t n = utf8_length(p, size);
    if (n == 0) {
        text_puts(t, "\\ufffd");
        return 1;
    }
    if (n == 3 && p[0] == 0xe2 && p[1] == 0x80 && (p[2] == 0xa8 || p[2] == 0xa9))
        text_puts(t, p[2] == 0xa8 ? "\\u2028" : "\\u2029");
    else
        text_add(t, (const char *)p, n);
    return n;
}

void text_json(struct text *t, const void *data, size_t size)
{
    const uint8_t *p = data;
    text_puts(t, "\"");
    for (size_t i = 0, from; i < size && !t->full;) {
        for (from = i; i < size && is_plain(p[i]); i++)
            ;
        text_add(t, (const char *)p + from, i - from);
        if (i == size)
            break;
        if (p[i] < 0x80)
            escape_ascii(t, p[i++]);
        else
            i += escape_wide(t, p + i, size - i);
    }
    text_puts(t, "\"");
}

void text_time(struct text *t, int64_t nanoseconds)
{
    time_t seconds = nanoseconds / 1000000000;
    struct tm tm;
    gmtime_r(&seconds, &tm);
    char fraction[16];
    int n = snprintf(fraction, sizeof fraction, ".%09d", (int)(nanoseconds % 1000000000));
    while (n > 1 && fraction[n - 1] == '0')
        n--;
    text_format(t, "%04d-%02d-%02dT%02d:%02d:%02d", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday,
                tm.tm_hour, tm.tm_min, tm.tm_sec);
    text_add(t, fraction, n > 1 ? (size_t)n : 0);
    text_puts(t, "Z");
}
