/* What follows the sums of a forest: average, base, the last step, and the norm of a row.
 *
 * Rules:
 *   - Every step is done in the order and the precision of the source that it is named after; answers leave as float32.
 *   - ONNX Runtime's steps (sigmoid, softmax, softmax_zero, probit) are float32 on sums that are rounded to float32 first.
 *     Trainers' steps (logistic, softmax_sum, exp, hinge, softplus, signed_square) have the precision of the sums.
 */
#include "trees.h"

#include <math.h>
#include <string.h>

static float sigmoid(float v) { /* ONNX Runtime's ComputeLogistic */
    const float e = 1.0f / (1.0f + expf(-fabsf(v)));
    return v < 0 ? 1.0f - e : e;
}

static float probit(float v) { /* ONNX Runtime's ComputeProbit: the inverse of erf after Winitzki */
    const float x = 2 * v - 1, sign = x < 0 ? -1.0f : 1.0f, ln = logf((1 - x) * (1 + x));
    const float a = 2 / (3.14159274f * 0.147f) + 0.5f * ln; /* pi as a float; old releases had 3.14159f */
    return 1.41421356f * (sign * sqrtf(-a + sqrtf(a * a - 1 / 0.147f * ln)));
}

static void softmax(float *v, int32_t k, int zeros) { /* ONNX Runtime's ComputeSoftmax and ComputeSoftmaxZero */
    float top = v[0], total = 0;
    for (int32_t j = 1; j < k; ++j)
        top = v[j] > top ? v[j] : top;
    const float factor = zeros ? expf(-top) : 0;
    for (int32_t j = 0; j < k; ++j) {
        if (zeros && v[j] <= 1e-7f && v[j] >= -1e-7f) {
            v[j] = v[j] * factor;
            continue;
        }
        v[j] = expf(v[j] - top);
        total += v[j];
    }
    for (int32_t j = 0; j < k; ++j)
        v[j] /= total;
}

static float logistic(float v) { /* XGBoost's common::Sigmoid */
    const float x = 88.7f < -v ? 88.7f : -v; /* no overflow */
    return 1.0f / (expf(x) + 1.0f + 1e-16f);
}

static void softmax_sum(float *v, int32_t k) { /* XGBoost's common::Softmax */
    float top = v[0];
    for (int32_t j = 1; j < k; ++j)
        top = fmaxf(v[j], top);
    double total = 0;
    for (int32_t j = 0; j < k; ++j) {
        v[j] = expf(v[j] - top);
        total += (double)v[j];
    }
    for (int32_t j = 0; j < k; ++j)
        v[j] /= (float)total;
}

static void softmax_doubles(double *v, int32_t k) { /* LightGBM's Common::Softmax; scikit-learn's and CatBoost's are the same */
    double top = v[0], total = 0;
    for (int32_t j = 1; j < k; ++j)
        top = v[j] > top ? v[j] : top;
    for (int32_t j = 0; j < k; ++j) {
        v[j] = exp(v[j] - top);
        total += v[j];
    }
    for (int32_t j = 0; j < k; ++j)
        v[j] /= total;
}

/* One sum -> one answer. first: of two columns the one that is what the second leaves of 1. */
static float one_float(const ri_forest *f, float v, int first) {
    switch (f->post) {
    case RI_POST_SIGMOID:
        return sigmoid(first ? -v : v);
    case RI_POST_LOGISTIC:
        v = logistic(v);
        return first ? 1.0f - v : v;
    case RI_POST_COMPLEMENT:
        return first ? 1.0f - v : v;
    case RI_POST_HINGE:
        return (v > 0) != first ? 1.0f : 0.0f;
    case RI_POST_PROBIT:
        return probit(v);
    case RI_POST_EXP:
        return expf(v);
    case RI_POST_SOFTPLUS:
        return log1pf(expf(v));
    case RI_POST_SIGNED_SQUARE:
        return v * fabsf(v);
    default:
        return v;
    }
}

static float one_double(const ri_forest *f, double v, int first) {
    switch (f->post) {
    case RI_POST_LOGISTIC:
        v = 1.0 / (1.0 + exp(-f->post_scale * v));
        return (float)(first ? 1.0 - v : v);
    case RI_POST_COMPLEMENT:
        return (float)(first ? 1.0 - v : v);
    case RI_POST_HINGE:
        return (v > 0) != first ? 1.0f : 0.0f;
    case RI_POST_EXP:
        return (float)exp(v);
    case RI_POST_SOFTPLUS: /* LightGBM's cross_entropy_lambda */
        return (float)log1p(exp(v));
    case RI_POST_SIGNED_SQUARE: /* LightGBM's reg_sqrt */
        return (float)(v * fabs(v));
    default:
        return one_float(f, (float)v, first);
    }
}

static int over_all(const ri_forest *f) { /* one column of the answer depends on the others */
    return f->norm != RI_NORM_NONE || f->post == RI_POST_SOFTMAX || f->post == RI_POST_SOFTMAX_ZERO || f->post == RI_POST_SOFTMAX_SUM;
}

static double sum_of(const ri_forest *f, const void *sums, int32_t output, int row) {
    const size_t at = (size_t)output * RI_BLOCK + (size_t)row;
    return f->doubles ? ((const double *)sums)[at] : (double)((const float *)sums)[at];
}

static float one(const ri_forest *f, const void *sums, int row, int32_t column) {
    const double v = sum_of(f, sums, f->n_outputs == 1 ? 0 : column, row);
    const int first = f->n_answers > f->n_outputs && column == 0;
    return f->doubles ? one_double(f, v, first) : one_float(f, (float)v, first);
}

/* All columns of one row into `out`. */
static void whole_row(const ri_forest *f, const void *sums, int row, double *room, float *out) {
    const int32_t k = f->n_outputs, columns = f->n_answers;
    if (f->post == RI_POST_SOFTMAX_SUM && f->doubles) {
        for (int32_t j = 0; j < columns; ++j)
            room[j] = sum_of(f, sums, k == 1 ? 0 : j, row);
        softmax_doubles(room, columns);
        for (int32_t j = 0; j < columns; ++j)
            out[j] = (float)room[j];
    } else if (f->post == RI_POST_SOFTMAX || f->post == RI_POST_SOFTMAX_ZERO || f->post == RI_POST_SOFTMAX_SUM) {
        for (int32_t j = 0; j < columns; ++j)
            out[j] = (float)sum_of(f, sums, k == 1 ? 0 : j, row);
        if (f->post == RI_POST_SOFTMAX_SUM)
            softmax_sum(out, columns);
        else
            softmax(out, columns, f->post == RI_POST_SOFTMAX_ZERO);
    } else {
        for (int32_t j = 0; j < columns; ++j)
            out[j] = one(f, sums, row, j);
    }
    if (f->norm == RI_NORM_L1) {
        float total = 0;
        for (int32_t j = 0; j < columns; ++j)
            total += fabsf(out[j]);
        for (int32_t j = 0; j < columns && total != 0; ++j)
            out[j] /= total;
    }
}

size_t ri_forest_finish_room(const ri_forest *f) {
    return (((size_t)f->n_answers + 1) * 12 + 63) & ~(size_t)63;
}

void ri_forest_finish(const ri_forest *f, void *sums, int n, void *room, float *out, int64_t out_stride, int column, int raw) {
    const double n_trees = (f->n_trees > 0 ? f->n_trees : 1) / (f->average == 2 ? (double)f->n_outputs : 1.0);
    if (f->average || !f->base_first)
        for (int32_t k = 0; k < f->n_outputs; ++k)
            for (int j = 0; j < n; ++j) {
                if (f->doubles) {
                    double *v = (double *)sums + k * RI_BLOCK + j;
                    *v = f->average ? *v / n_trees : *v;
                    *v = f->base_first ? *v : *v + f->base[k];
                } else {
                    float *v = (float *)sums + k * RI_BLOCK + j;
                    *v = f->average ? *v / (float)n_trees : *v;
                    *v = f->base_first ? *v : *v + (float)f->base[k];
                }
            }
    double *wide = (double *)room;
    float *all = (float *)(void *)(wide + f->n_answers + 1);
    for (int i = 0; i < n; ++i, out += out_stride) {
        if (raw) {
            for (int32_t j = column < 0 ? 0 : column; j <= (column < 0 ? f->n_answers - 1 : column); ++j)
                out[column < 0 ? j : 0] = (float)sum_of(f, sums, f->n_outputs == 1 ? 0 : j, i);
        } else if (column < 0) {
            whole_row(f, sums, i, wide, out);
        } else if (over_all(f)) {
            whole_row(f, sums, i, wide, all);
            *out = all[column];
        } else {
            *out = one(f, sums, i, column);
        }
    }
}
