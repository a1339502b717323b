/* The pixels are stored, not compressed: pictures here are some hundred pixels across. */
#include "app/png.h"

#include "base/memory.h"

static uint32_t crc(const uint8_t *bytes, int64_t count)
{
    uint32_t sum = 0xffffffff;

    for (int64_t i = 0; i < count; i++) {
        sum ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            sum = sum >> 1 ^ (sum & 1 ? 0xedb88320 : 0);
    }
    return ~sum;
}

static uint32_t adler(const uint8_t *bytes, int64_t count)
{
    uint32_t a = 1, b = 0;

    for (int64_t i = 0; i < count; i++) {
        a = (a + bytes[i]) % 65521;
        b = (b + a) % 65521;
    }
    return b << 16 | a;
}

static void put32(fv_text *out, uint32_t value)
{
    uint8_t bytes[4] = {(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value};

    fv_text_add(out, (const char *)bytes, 4);
}

static void chunk(fv_text *out, const char *type, const fv_text *data)
{
    int64_t from;

    put32(out, (uint32_t)data->length);
    from = out->length;
    fv_text_add(out, type, 4);
    fv_text_add(out, fv_text_get(data), data->length);
    if (fv_text_status(out) == FV_OK) put32(out, crc((const uint8_t *)out->data + from, out->length - from));
}

/* zlib's wrapping around stored blocks. */
static void store(fv_text *out, const fv_text *raw)
{
    enum { BLOCK = 65535 };

    fv_text_add(out, "\x78\x01", 2);
    for (int64_t at = 0; at < raw->length || at == 0; at += BLOCK) {
        uint16_t length = (uint16_t)fv_min(raw->length - at, BLOCK), inverse = (uint16_t)~length;
        uint8_t head[5] = {at + length >= raw->length, (uint8_t)length, (uint8_t)(length >> 8), (uint8_t)inverse,
                           (uint8_t)(inverse >> 8)};
        fv_text_add(out, (const char *)head, 5);
        fv_text_add(out, raw->data + at, length);
    }
    put32(out, adler((const uint8_t *)fv_text_get(raw), raw->length));
}

static void base64(fv_text *out, const fv_text *bytes)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (int64_t at = 0; at < bytes->length; at += 3) {
        uint32_t group = 0;
        char four[4];
        for (int i = 0; i < 3; i++)
            group = group << 8 | (at + i < bytes->length ? (uint8_t)bytes->data[at + i] : 0);
        for (int i = 0; i < 4; i++)
            four[i] = at + i > bytes->length ? '=' : digits[group >> (18 - 6 * i) & 63];
        fv_text_add(out, four, 4);
    }
}

void png_add(fv_text *out, int64_t width, int64_t height, const uint8_t *pixels, const uint8_t palette[256][3])
{
    fv_text part = {0}, raw = {0};

    fv_text_add(out, "\x89PNG\r\n\x1a\n", 8);
    put32(&part, (uint32_t)width);
    put32(&part, (uint32_t)height);
    fv_text_add(&part, "\x08\x03\0\0\0", 5); /* 8 bits, palette */
    chunk(out, "IHDR", &part);
    part.length = 0;
    fv_text_add(&part, (const char *)palette, 256 * 3);
    chunk(out, "PLTE", &part);
    part.length = 0;
    fv_text_add(&part, "\0", 1); /* index 0 is transparent */
    chunk(out, "tRNS", &part);
    for (int64_t row = 0; row < height; row++) {
        fv_text_add(&raw, "\0", 1); /* no filter */
        fv_text_add(&raw, (const char *)pixels + row * width, width);
    }
    part.length = 0;
    store(&part, &raw);
    chunk(out, "IDAT", &part);
    part.length = 0;
    chunk(out, "IEND", &part);
    if (out->status == FV_OK) out->status = fv_text_status(&part);
    if (out->status == FV_OK) out->status = fv_text_status(&raw);
    fv_text_free(&part);
    fv_text_free(&raw);
}

void png_uri(fv_text *out, int64_t width, int64_t height, const uint8_t *pixels, const uint8_t palette[256][3])
{
    fv_text file = {0};

    png_add(&file, width, height, pixels, palette);
    if (out->status == FV_OK) out->status = fv_text_status(&file);
    fv_text_printf(out, "data:image/png;base64,");
    base64(out, &file);
    fv_text_free(&file);
}
