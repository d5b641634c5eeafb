/* The formulas of celu_networks.py: energies and their gradients by the inputs; gradients by all weights and biases.

   N rows, which belong to groups; L hidden layers with widths w_1 ... w_L, w_0 inputs. Each block of rows of a group goes through
   all layers at once. What of a row has the size of a layer is in `memory`, of which each row has an equal part: there, rows are
   sorted by group, and each layer has all rows of a group one after another. No sum depends on the number of threads. */

#include <stddef.h>
#include <string.h>

#include "products.h"

#define LARGEST_BLOCK 96 /* rows */

typedef struct {
    const whole *group, *widths; /* (N,), (groups, L + 2) */
    whole *order;                /* (N,) the rows sorted by group */
    const real *const *weights, *const *biases;
    whole num_rows, num_groups, num_layers, memory; /* L + 1 layers; numbers of a row in memory */
    double alpha;
    int num_threads;
} networks;

/* x = f(z + b), and f' of x. */

static void activate(real *x, const real *bias, whole rows, whole width, real alpha) {
    const real rate = LOG2_E / alpha;
    for (whole row = 0; row < rows; row++, x += width)
        for (whole k = 0; k < width; k++) {
            const real z = x[k] + bias[k], below = z < 0 ? z : 0;
            x[k] = (z < 0 ? 0 : z) + alpha * (power_of_two(below * rate) - 1);
        }
}

static inline real slope_at(real x, real alpha) { return x > 0 ? 1 : (x + alpha) / alpha; }

typedef struct {
    whole group, first, num, place; /* rows of the group, the first one of them in memory, and the first of a block */
    whole rows;                     /* of the block */
} block;

static const whole *widths_of(const networks *s, whole group) { return s->widths + group * (s->num_layers + 1); }

/* Where the rows of the block begin in the memory of x_l, then of d_l. */
static real *x_of(const networks *s, const block *b, real *memory, whole layer) {
    const whole *widths = widths_of(s, b->group);
    real *place = memory + b->first * s->memory;
    for (whole l = 0; l < layer; l++) place += b->num * widths[l];
    return place + b->place * widths[layer];
}

static real *d_of(const networks *s, const block *b, real *memory, whole layer) {
    const whole *widths = widths_of(s, b->group);
    real *place = memory + b->first * s->memory;
    for (whole l = 0; l < s->num_layers; l++) place += b->num * widths[l];
    for (whole l = 1; l < layer; l++) place += b->num * widths[l];
    return place + b->place * widths[layer];
}

/* Of a width: what is passed on from layer to layer. */
static real *spare_of(const networks *s, const block *b, real *memory) {
    const whole *widths = widths_of(s, b->group);
    whole widest = 0;
    for (whole l = 0; l < s->num_layers; l++) widest = widths[l] > widest ? widths[l] : widest;
    block all = *b;
    all.place = 0;
    return d_of(s, &all, memory, s->num_layers - 1) + b->num * widths[s->num_layers - 1] + b->place * widest;
}

static const real *weight_of(const networks *s, whole group, whole layer) { return s->weights[group * s->num_layers + layer]; }

static const real *bias_of(const networks *s, whole group, whole layer) { return s->biases[group * s->num_layers + layer]; }

/* The transposed matrix of a hidden layer, which has the place of its group and layer among all of them. */
static real *transposed_of(const networks *s, real *transposed, whole group, whole layer) {
    for (whole g = 0; g <= group; g++)
        for (whole l = 0; l < (g < group ? s->num_layers - 1 : layer); l++)
            transposed += widths_of(s, g)[l] * widths_of(s, g)[l + 1];
    return transposed;
}

/* Rows sorted by group, and where each group begins. */
static void sort(const networks *s, whole *starts) {
    memset(starts, 0, (s->num_groups + 1) * sizeof(whole));
    for (whole n = 0; n < s->num_rows; n++) starts[s->group[n] + 1]++;
    for (whole g = 0; g < s->num_groups; g++) starts[g + 1] += starts[g];
    whole next[s->num_groups + 1];
    memcpy(next, starts, sizeof(next));
    for (whole n = 0; n < s->num_rows; n++) s->order[next[s->group[n]]++] = n;
}

static whole rows_of_blocks(const networks *s) {
    const whole rows = (s->num_rows / s->num_threads + DOWN - 1) / DOWN * DOWN;
    return rows < DOWN ? DOWN : rows < LARGEST_BLOCK ? rows : LARGEST_BLOCK;
}

/* One of the blocks of all groups; without rows beyond the last one. */
static block block_of(const networks *s, const whole *starts, whole number) {
    const whole length = rows_of_blocks(s);
    for (whole g = 0; g < s->num_groups; g++) {
        const whole num = starts[g + 1] - starts[g], blocks = (num + length - 1) / length, place = number * length;
        if (number < blocks)
            return (block){g, starts[g], num, place, num - place < length ? num - place : length};
        number -= blocks;
    }
    return (block){0};
}

static whole num_blocks(const networks *s, const whole *starts) {
    whole number = 0;
    while (block_of(s, starts, number).rows) number++;
    return number;
}

static void gather(const networks *s, const real *from, const block *b, whole width, real *to) {
    for (whole row = 0; row < b->rows; row++)
        memcpy(to + row * width, from + s->order[b->first + b->place + row] * width, width * sizeof(real));
}

static void go_through(const networks *s, const block *b, const real *inputs, real *transposed, real *memory,
                       real *energies, real *gradients) {
    const whole last = s->num_layers - 1, *widths = widths_of(s, b->group), *rows = s->order + b->first + b->place;
    const real alpha = s->alpha, *w = weight_of(s, b->group, last);
    real *spare = spare_of(s, b, memory);
    gather(s, inputs, b, widths[0], x_of(s, b, memory, 0));
    for (whole l = 1; l <= last; l++) {
        real *x = x_of(s, b, memory, l);
        const real *matrix = transposed_of(s, transposed, b->group, l - 1);
        rows_times(x_of(s, b, memory, l - 1), b->rows, matrix, widths[l - 1], widths[l], x);
        activate(x, bias_of(s, b->group, l - 1), b->rows, widths[l], alpha);
    }
    for (whole row = 0; row < b->rows; row++) {
        const real *x = x_of(s, b, memory, last) + row * widths[last];
        real energy = *bias_of(s, b->group, last);
        for (whole k = 0; k < widths[last]; k++) energy += x[k] * w[k], spare[row * widths[last] + k] = w[k];
        energies[rows[row]] = energy;
    }
    for (whole l = last; l >= 1; l--) {
        const real *x = x_of(s, b, memory, l);
        real *d = d_of(s, b, memory, l);
        for (whole k = 0; k < b->rows * widths[l]; k++) d[k] = spare[k] * slope_at(x[k], alpha);
        rows_times(d, b->rows, weight_of(s, b->group, l - 1), widths[l], widths[l - 1], spare);
    }
    for (whole row = 0; row < b->rows; row++)
        memcpy(gradients + rows[row] * widths[0], spare + row * widths[0], widths[0] * sizeof(real));
}

/* t and y, in memory as x and d are. */
static void go_up_and_down(const networks *s, const block *b, const real *by_energies, const real *by_gradients,
                           real *transposed, real *memory, real *found) {
    const whole last = s->num_layers - 1, *widths = widths_of(s, b->group), *rows = s->order + b->first + b->place;
    const real alpha = s->alpha, *w = weight_of(s, b->group, last);
    real *spare = spare_of(s, b, found);
    gather(s, by_gradients, b, widths[0], x_of(s, b, found, 0));
    for (whole l = 1; l <= last; l++) {
        const real *x = x_of(s, b, memory, l);
        real *t = x_of(s, b, found, l), *u = d_of(s, b, found, l);
        const real *matrix = transposed_of(s, transposed, b->group, l - 1);
        rows_times(x_of(s, b, found, l - 1), b->rows, matrix, widths[l - 1], widths[l], u);
        for (whole k = 0; k < b->rows * widths[l]; k++) t[k] = u[k] * slope_at(x[k], alpha);
    }
    for (whole row = 0; row < b->rows; row++)
        for (whole k = 0; k < widths[last]; k++) spare[row * widths[last] + k] = by_energies[rows[row]] * w[k];
    for (whole l = last; l >= 1; l--) {
        const real *x = x_of(s, b, memory, l), *d = d_of(s, b, memory, l);
        real *y = d_of(s, b, found, l); /* where u is until then */
        for (whole k = 0; k < b->rows * widths[l]; k++)
            y[k] = spare[k] * slope_at(x[k], alpha) + (x[k] > 0 ? 0 : d[k] * y[k] / alpha);
        if (l > 1) rows_times(y, b->rows, weight_of(s, b->group, l - 1), widths[l], widths[l - 1], spare);
    }
}

static void sum_rows(const real *rows, whole num, whole width, real *sums) {
    memset(sums, 0, width * sizeof(real));
    for (whole row = 0; row < num; row++)
        for (whole k = 0; k < width; k++) sums[k] += rows[row * width + k];
}

/* A panel of the gradient by the matrix of a hidden layer, and with the first one the gradient by its biases. */
static void of_layer(const networks *s, const block *b, whole layer, whole column, real *memory, real *found, real *by_weight,
                     real *by_bias) {
    const whole num_in = widths_of(s, b->group)[layer], num_out = widths_of(s, b->group)[layer + 1];
    const real *y = d_of(s, b, found, layer + 1), *d = d_of(s, b, memory, layer + 1);
    const factors parts[2] = {{y, x_of(s, b, memory, layer)}, {d, x_of(s, b, found, layer)}};
    const shape sizes = {.down = 1, .along = num_out, .b_row = num_in, .c_row = num_in, .depth = b->num, .num_parts = 2};
    panel(parts, &sizes, num_out, column, num_in, by_weight);
    if (column == 0) sum_rows(y, b->num, num_out, by_bias);
}

static void of_last_layer(const networks *s, const block *b, const real *by_energies, real *memory, real *found,
                          real *by_weight, real *by_bias) {
    const whole last = s->num_layers - 1, width = widths_of(s, b->group)[last];
    const real *x = x_of(s, b, memory, last);
    sum_rows(x_of(s, b, found, last), b->num, width, by_weight);
    *by_bias = 0;
    for (whole row = 0; row < b->num; row++) {
        const real by_energy = by_energies[s->order[b->first + row]];
        for (whole k = 0; k < width; k++) by_weight[k] += by_energy * x[row * width + k];
        *by_bias += by_energy;
    }
}

void networks_forward(const networks *s, const real *inputs, real *transposed, real *memory, real *energies, real *gradients) {
    whole starts[s->num_groups + 1];
    sort(s, starts);
    const whole blocks = num_blocks(s, starts), hidden = s->num_layers - 1;
#pragma omp parallel num_threads(s->num_threads)
    {
#pragma omp for schedule(dynamic)
        for (whole k = 0; k < s->num_groups * hidden; k++) {
            const whole group = k / hidden, l = k % hidden, *widths = widths_of(s, group);
            transpose(weight_of(s, group, l), widths[l + 1], widths[l], transposed_of(s, transposed, group, l));
        }
#pragma omp for schedule(dynamic)
        for (whole k = 0; k < blocks; k++) {
            const block b = block_of(s, starts, k);
            go_through(s, &b, inputs, transposed, memory, energies, gradients);
        }
    }
}

void networks_backward(const networks *s, const real *by_energies, const real *by_gradients, real *transposed, real *memory,
                       real *found, real *const *by_weights, real *const *by_biases) {
    whole starts[s->num_groups + 1], most = 1;
    sort(s, starts);
    for (whole k = 0; k < s->num_groups * (s->num_layers + 1); k++) most = s->widths[k] > most ? s->widths[k] : most;
    const whole blocks = num_blocks(s, starts), panels = (most + PANEL - 1) / PANEL;
#pragma omp parallel num_threads(s->num_threads)
    {
#pragma omp for schedule(dynamic)
        for (whole k = 0; k < blocks; k++) {
            const block b = block_of(s, starts, k);
            go_up_and_down(s, &b, by_energies, by_gradients, transposed, memory, found);
        }
#pragma omp for schedule(dynamic)
        for (whole k = 0; k < s->num_groups * s->num_layers * panels; k++) {
            const whole of_all = k / panels, column = k % panels * PANEL;
            const whole group = of_all / s->num_layers, l = of_all % s->num_layers;
            const block b = {.group = group, .first = starts[group], .num = starts[group + 1] - starts[group]};
            if (l == s->num_layers - 1 && column == 0)
                of_last_layer(s, &b, by_energies, memory, found, by_weights[of_all], by_biases[of_all]);
            else if (l < s->num_layers - 1 && column < widths_of(s, group)[l])
                of_layer(s, &b, l, column, memory, found, by_weights[of_all], by_biases[of_all]);
        }
    }
}
