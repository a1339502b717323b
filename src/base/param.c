#include "base/param.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/options.h"

/* ---- by name ---------------------------------------------------------------------------------------------------- */

int fv_params_count(const fv_param *table)
{
    int count = 0;

    while (table && table[count].name)
        count++;
    return count;
}

static const char *name_at(const void *user, int index)
{
    return ((const fv_param *)user)[index].name;
}

fv_status fv_params_find(const char *owner, const char *what, const fv_param *table, const char *name, int *index)
{
    int count = fv_params_count(table);
    const char *near;

    for (*index = 0; *index < count; (*index)++)
        if (strcmp(table[*index].name, name) == 0) return FV_OK;
    if (count == 0) return fv_fail(FV_E_USAGE, "%s: %s '%s' is not known; it has none", owner, what, name);
    near = fv_nearest(name, count, name_at, table);
    return fv_fail(FV_E_USAGE, "%s: %s '%s' is not known; %s'%s'? ('fovea show %s' lists them)", owner, what, name,
                   near ? "did you mean " : "perhaps ", near ? near : table[0].name, owner);
}

fv_status fv_params_place(const char *owner, const char *what, const fv_param *table, int count,
                          const fv_named_tensor *given, fv_tensor *place)
{
    for (int i = 0; i < count; i++) {
        int index;
        FV_TRY(fv_params_find(owner, what, table, given[i].name, &index));
        if (place[index].data) return fv_fail(FV_E_USAGE, "%s: %s '%s' is given twice", owner, what, given[i].name);
        if (!given[i].tensor.data) return fv_fail(FV_E_ARGUMENT, "%s: %s '%s' has no data", owner, what, given[i].name);
        place[index] = given[i].tensor;
    }
    return FV_OK;
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

/* The size a name or number stands for; -1: none yet. */
static int64_t word_size(const fv_named_sizes *sizes, const char *text, size_t length)
{
    char word[FV_DIM_TEXT];
    int64_t size = -1;

    if (isdigit((unsigned char)*text)) return strtoll(text, NULL, 10);
    if (sizes->known && length < sizeof word) {
        memcpy(word, text, length);
        word[length] = 0;
        size = sizes->known(sizes->user, word);
    }
    for (int i = 0; i < sizes->count && size < 0; i++)
        if (sizes->at[i].length == length && memcmp(sizes->at[i].text, text, length) == 0) size = sizes->at[i].size;
    return size;
}

int64_t fv_size_of(const fv_named_sizes *sizes, const char *name)
{
    return word_size(sizes, name, strlen(name));
}

/* A product of words, "2*D", as far as it is known. */
struct product {
    int64_t size;     /* of the known ones; -1: too large */
    const char *free; /* the one that is not; NULL: all are, or two are not and size is -1 */
    size_t length;
};

/* Moves *text behind it. */
static struct product read_product(const fv_named_sizes *sizes, const char **text)
{
    struct product p = {.size = 1};

    for (;; (*text)++) {
        const char *word = *text;
        while (isalnum((unsigned char)**text) || **text == '_')
            (*text)++;
        int64_t size = word_size(sizes, word, (size_t)(*text - word));
        if (size < 0 && !p.free && p.size >= 0) {
            p.free = word;
            p.length = (size_t)(*text - word);
        } else if (size < 0 || p.size < 0 || !fv_mul_i64(p.size, size, &p.size)) {
            p = (struct product){.size = -1};
        }
        if (**text != '*') return p;
    }
}

/* Reads one dim, "1|B", and moves *text behind it; true if `size` fits.  A free name takes what makes it fit.
 * *expected: a size that would fit, -1 for one that is not known. */
static bool dim_fits(fv_named_sizes *sizes, const char **text, int64_t size, int64_t *expected)
{
    bool fits = false;

    for (;; (*text)++) {
        *text += strspn(*text, " [,");
        struct product p = read_product(sizes, text);
        *expected = p.free ? -1 : p.size;
        if (p.free && size >= 0 && sizes->count < FV_SIZE_NAMES && p.size > 0 && size % p.size == 0) {
            sizes->at[sizes->count].text = p.free;
            sizes->at[sizes->count].length = p.length;
            sizes->at[sizes->count++].size = size / p.size;
            *expected = size;
        }
        fits |= *expected >= 0 && *expected == size;
        if (**text != '|') return fits;
    }
}

static int shape_rank(const char *shape)
{
    int rank = 1;

    for (; *shape && *shape != ']'; shape++)
        rank += *shape == ',';
    return rank;
}

/* Of several shapes, "[H, N] or [H, N, M]", that of the rank, else the first. */
static const char *shape_of_rank(const char *shape, int rank)
{
    for (const char *each = shape; each; each = strchr(each + 1, '['))
        if (shape_rank(each) == rank) return each;
    return shape;
}

/* ---- shapes ----------------------------------------------------------------------------------------------------- */

void fv_param_dim(const fv_param *param, int d, char word[FV_DIM_TEXT])
{
    const char *text = param->shape;

    for (; d > 0; text++)
        d -= *text == ',';
    text += strspn(text, "[ ,");
    snprintf(word, FV_DIM_TEXT, "%.*s", (int)strcspn(text, ",]"), text);
}

/* "[2,?,8]": what sizes are known by now. */
static void known_text(const char *text, fv_named_sizes *sizes, char *out, size_t room)
{
    int rank = shape_rank(text);
    size_t length = 0;
    int64_t size;

    for (int d = 0; d < rank && length < room; d++) {
        dim_fits(sizes, &text, -1, &size);
        length += (size_t)snprintf(out + length, room - length, "%s", d ? "," : "[");
        if (length >= room) return;
        length += (size_t)(size < 0 ? snprintf(out + length, room - length, "?")
                                    : snprintf(out + length, room - length, "%lld", (long long)size));
    }
    if (length < room) snprintf(out + length, room - length, "]");
}

fv_status fv_param_check(const char *owner, const char *what, const fv_param *param, const fv_tensor *t,
                         fv_named_sizes *sizes)
{
    const char *shape = shape_of_rank(param->shape, t->rank), *text = shape;
    bool same_rank = t->rank == shape_rank(text), fits = same_rank;
    char known[160];
    int64_t size;

    if (t->dtype != param->dtype)
        return fv_fail(FV_E_DTYPE, "%s: %s '%s': expected %s, got %s", owner, what, param->name,
                       fv_dtype_name(param->dtype), fv_dtype_name(t->dtype));
    for (int d = 0; d < t->rank && same_rank; d++)
        fits &= dim_fits(sizes, &text, t->dims[d], &size);
    if (fits) return FV_OK;
    known_text(shape, sizes, known, sizeof known);
    return fv_fail(FV_E_SHAPE, "%s: %s '%s': expected %s = %s, got %s", owner, what, param->name, param->shape, known,
                   fv_shape_text(t));
}

fv_status fv_param_shape(const char *owner, const char *what, const fv_param *param, fv_named_sizes *sizes,
                         fv_tensor *shape)
{
    const char *text = param->shape;
    int rank = shape_rank(text);
    int64_t dims[FV_MAX_RANK];

    for (int d = 0; d < rank; d++) {
        dim_fits(sizes, &text, -1, &dims[d]);
        if (dims[d] < 0)
            return fv_fail(FV_E_UNSUPPORTED, "%s: %s '%s': the size of %s does not follow from what is given", owner,
                           what, param->name, param->shape);
    }
    return fv_tensor_wrap(shape, NULL, param->dtype, rank, dims);
}
