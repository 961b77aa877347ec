/* Range coding on a CPU: stream after stream, all lanes of a stream together, row after row. The arithmetic, the tables and
 * the order of words are those of reference.py; what the arguments are is in native.py. Nothing is read or written
 * outside the arrays, whatever the words are. */

#include <stdint.h>
#include <string.h>

#define MAX_LANES 128
#define PRECISION 10
#define TOTAL (1 << PRECISION)
#define SYMBOL_BITS 5
#define FLOOR (1u << 16)
#define CLASSES 16
enum { ROW, ROWS, COLUMN, TOKENS, LANE, LANES, STRIDE, STATE, BLOCK, FIELDS };
enum { WORDS_SHORT = 1, WORDS_LEFT = 2, STATE_WRONG = 4, ESCAPES_WRONG = 8 };

typedef struct {
    const int32_t *fields;  /* [S, 9], see layout.py */
    const uint8_t *choice;  /* [R, 16] */
    const uint8_t *classes; /* [2, N] */
    const int16_t *shifts;  /* [B, groups], or NULL */
    const int32_t *group;   /* [R], or NULL */
    int64_t split, columns, groups, tables, alphabet;
} Setting;

/* Where the tables of a row begin, by class, in a look-up of `size` entries a table. */
static void table_places(const Setting *s, int64_t row, int64_t block, int32_t size, int32_t *places) {
    for (int c = 0; c < CLASSES; c++) {
        int64_t table = s->choice[row * CLASSES + c];
        if (s->shifts) {
            table += s->shifts[block * s->groups + s->group[row]];
            table = table < 0 ? 0 : table >= s->tables ? s->tables - 1 : table;
        }
        places[c] = (int32_t)table * size;
    }
}

/* Classes of the columns of a step, for the row's kind. */
static const uint8_t *classes_of(const Setting *s, int64_t row, int64_t column) {
    return s->classes + (row >= s->split ? s->columns : 0) + column;
}

/* Columns that a stream's lanes have in a step: its first, and how many. */
static int64_t columns_of(const int32_t *f, int64_t repeat, int64_t *column) {
    int64_t own = repeat * f[STRIDE] + f[LANE], left = f[TOKENS] - own;
    *column = f[COLUMN] + own;
    return left < 0 ? 0 : left < f[LANES] ? left : f[LANES];
}

static int64_t repeats_of(const int32_t *f) { return (f[TOKENS] + f[STRIDE] - 1) / f[STRIDE]; }

/* Decode streams first … last into out: int8 [R, N], escapes as 0. slots: int32 [K, 1024], see tables.py. */
void sq_decode(const Setting *s, int64_t first, int64_t last, const int32_t *slots, const uint16_t *words,
               const int64_t *begins, const int64_t *counts, const uint32_t *states, const int64_t *escape_begins,
               const int64_t *escapes, int8_t *out, int64_t *positions, uint16_t *finals, int32_t *status) {
    const int32_t escape = (int32_t)s->alphabet - 1, span = ((int32_t)s->alphabet - 2) / 2;
    for (int64_t stream = first; stream < last; stream++) {
        const int32_t *f = s->fields + stream * FIELDS;
        int64_t at = begins[stream], end = at + counts[stream], repeats = repeats_of(f), marked = 0;
        uint32_t x[MAX_LANES];
        uint8_t symbol[MAX_LANES];
        memcpy(x, states + f[STATE], f[LANES] * sizeof *x);
        for (int64_t row = f[ROW]; row < f[ROW] + f[ROWS]; row++) {
            int32_t places[CLASSES];
            table_places(s, row, f[BLOCK], TOTAL, places);
            for (int64_t repeat = 0; repeat < repeats; repeat++) {
                int64_t column, n = columns_of(f, repeat, &column);
                const uint8_t *classes = classes_of(s, row, column);
                int8_t *to = out + row * s->columns + column;
                int any = 0;
                for (int64_t i = 0; i < n; i++) {
                    uint32_t entry = (uint32_t)slots[places[classes[i] & (CLASSES - 1)] + (x[i] & (TOTAL - 1))];
                    uint32_t frequency = entry >> (SYMBOL_BITS + PRECISION), inside = (entry >> SYMBOL_BITS) & (TOTAL - 1);
                    x[i] = frequency * (x[i] >> PRECISION) + inside;
                    symbol[i] = entry & ((1 << SYMBOL_BITS) - 1);
                }
                for (int64_t i = 0; i < n; i++) {
                    to[i] = symbol[i] == escape ? 0 : (int8_t)(symbol[i] - span);
                    any |= symbol[i] == escape;
                }
                for (int64_t i = 0; i < n; i++)
                    if (x[i] < FLOOR) {
                        x[i] = x[i] << 16 | (at < end ? words[at] : 0);
                        at++;
                    }
                for (int64_t i = 0; any && i < n; i++)
                    if (symbol[i] == escape) {
                        if (marked < escapes[stream])
                            positions[escape_begins[stream] + marked] = row * s->columns + column + i;
                        marked++;
                    }
            }
        }
        int wrong = 0;
        for (int64_t i = 0; i < f[LANES]; i++) {
            finals[f[STATE] + i] = (uint16_t)x[i];
            wrong |= x[i] >> 16 != 1;
        }
        status[stream] = (at > end ? WORDS_SHORT : 0) | (at < end ? WORDS_LEFT : 0) | (wrong ? STATE_WRONG : 0) |
                         (marked != escapes[stream] ? ESCAPES_WRONG : 0);
    }
}

/* The entry of tables.symbols that codes a value, or that of the escape. table: its 32 entries. */
static uint32_t entry_of(const int32_t *table, int32_t value, int32_t span, int32_t escape, int *escaped) {
    int inside = value >= -span && value <= span;
    uint32_t entry = (uint32_t)table[inside ? value + span : escape];
    *escaped = !inside || entry == 0;
    return entry ? entry : (uint32_t)table[escape];
}

/* Encode streams first … last of symbols int32 [R, N]: words at the end of each stream's room (rooms: where it begins and
 * one past the end, [S + 1]), counts, states. tables: int32 [K, 32], see tables.py. */
void sq_encode(const Setting *s, int64_t first, int64_t last, const int32_t *tables, const int32_t *symbols,
               const uint16_t *initial, const int64_t *rooms, uint16_t *words, int64_t *counts, uint32_t *states) {
    const int32_t escape = (int32_t)s->alphabet - 1, span = ((int32_t)s->alphabet - 2) / 2;
    for (int64_t stream = first; stream < last; stream++) {
        const int32_t *f = s->fields + stream * FIELDS;
        int64_t at = rooms[stream + 1], repeats = repeats_of(f);
        uint32_t x[MAX_LANES], entry[MAX_LANES];
        for (int64_t i = 0; i < f[LANES]; i++)
            x[i] = FLOOR + initial[f[STATE] + i];
        for (int64_t row = f[ROW] + f[ROWS] - 1; row >= f[ROW]; row--) {
            int32_t places[CLASSES];
            table_places(s, row, f[BLOCK], 1 << SYMBOL_BITS, places);
            for (int64_t repeat = repeats - 1; repeat >= 0; repeat--) {
                int64_t column, n = columns_of(f, repeat, &column);
                const uint8_t *classes = classes_of(s, row, column);
                const int32_t *from = symbols + row * s->columns + column;
                for (int64_t i = 0; i < n; i++) {
                    int escaped;
                    entry[i] = entry_of(tables + places[classes[i] & (CLASSES - 1)], from[i], span, escape, &escaped);
                }
                for (int64_t i = n - 1; i >= 0; i--)
                    if (x[i] >> 22 >= entry[i] >> 16) {
                        words[--at] = (uint16_t)x[i];
                        x[i] >>= 16;
                    }
                for (int64_t i = 0; i < n; i++) { /* whole numbers below 2^32: the quotient's floor is exact */
                    uint32_t frequency = entry[i] >> 16, quotient = (uint32_t)((double)x[i] / (double)frequency);
                    x[i] += quotient * (TOTAL - frequency) + (entry[i] & 0xffff);
                }
            }
        }
        memcpy(states + f[STATE], x, f[LANES] * sizeof *x);
        counts[stream] = rooms[stream + 1] - at;
    }
}

/* Where symbols int32 [R, N] of streams first … last escape, in decoding order, as far as each stream has room for them (rooms: where
 * it begins and one past the end, [S + 1]), and how many each stream has. */
void sq_escapes(const Setting *s, int64_t first, int64_t last, const int32_t *tables, const int32_t *symbols,
                const int64_t *rooms, int64_t *positions, int64_t *counts) {
    const int32_t escape = (int32_t)s->alphabet - 1, span = ((int32_t)s->alphabet - 2) / 2;
    for (int64_t stream = first; stream < last; stream++) {
        const int32_t *f = s->fields + stream * FIELDS;
        int64_t repeats = repeats_of(f), marked = 0;
        for (int64_t row = f[ROW]; row < f[ROW] + f[ROWS]; row++) {
            int32_t places[CLASSES];
            table_places(s, row, f[BLOCK], 1 << SYMBOL_BITS, places);
            for (int64_t repeat = 0; repeat < repeats; repeat++) {
                int64_t column, n = columns_of(f, repeat, &column);
                const uint8_t *classes = classes_of(s, row, column);
                const int32_t *from = symbols + row * s->columns + column;
                for (int64_t i = 0; i < n; i++) {
                    int escaped;
                    entry_of(tables + places[classes[i] & (CLASSES - 1)], from[i], span, escape, &escaped);
                    if (escaped) {
                        if (marked < rooms[stream + 1] - rooms[stream])
                            positions[rooms[stream] + marked] = row * s->columns + column + i;
                        marked++;
                    }
                }
            }
        }
        counts[stream] = marked;
    }
}
