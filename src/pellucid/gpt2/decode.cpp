// One step of GPT-2 for a few rows: every weight is read once, in the order in which it lies in memory.
//
// A step of decoding does two operations for every weight that it reads, so that its time is that of reading the
// weights. Everything is one parallel region: a thread reads its share of every matrix, and barriers stand where a layer
// needs all of the one before. Sums are in float32, in another order than torch's. `Weight` is float or bfloat16.
//
// Vectors are written with the compiler's own extension, and are as wide as the processor's registers: wider ones would
// live in memory.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <omp.h>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;         // floats in a vector
constexpr int ROWS_AT_ONCE = 8;   // rows of the batch that share one pass over a block: their sums fill the registers
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int ROWS_AT_ONCE = 4;
#else
constexpr int LANES = 4;
constexpr int ROWS_AT_ONCE = 4;
#endif
constexpr int BLOCK = 32;         // outputs that lie side by side; every matrix is padded to whole blocks

// Vectors of a block that are summed in one pass over it: all of them where the registers hold the sums of so many rows.
constexpr int vectors_at_once(int rows) { return rows * BLOCK / LANES <= 8 ? BLOCK / LANES : 2; }

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

struct bfloat16 { uint16_t bits; };

// Bytes that are fetched before they are needed: what was quickest on the machines at hand. With AVX512, 8192 bytes of
// floats take a tenth less time than 2048 for eight rows, and as much for one.
template <typename Weight> constexpr int ahead = sizeof(Weight) != sizeof(float) ? 16384 : LANES == 16 ? 8192 : 2048;

inline Vector load(const float* p) { Vector v; std::memcpy(&v, p, sizeof v); return v; }

inline Vector load(const bfloat16* p) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    Words words = __builtin_convertvector(halves, Words) << 16;
    Vector v;
    std::memcpy(&v, &words, sizeof v);
    return v;
}

// Halves are added to each other as narrower vectors: in memory, each would wait for the store of the one before.
inline float sum(const Vector& v) {
    typedef float Half __attribute__((vector_size(LANES / 2 * sizeof(float))));
    typedef float Quarter __attribute__((vector_size(4 * sizeof(float))));
    Quarter four{};
    if constexpr (LANES == 4) {
        std::memcpy(&four, &v, sizeof four);
    } else {
        Half half[2];
        std::memcpy(half, &v, sizeof half);
        half[0] += half[1];
        Quarter parts[LANES / 8];
        std::memcpy(parts, half, sizeof parts);
        for (const Quarter& part : parts) four += part;
    }
    return (four[0] + four[2]) + (four[1] + four[3]);
}

inline float sum(const float* a, int n) {
    Vector acc{};
    int i = 0;
    for (; i + LANES <= n; i += LANES) acc += load(a + i);
    float total = sum(acc);
    for (; i < n; ++i) total += a[i];
    return total;
}

inline float dot(const float* a, const float* b, int n) {
    Vector acc{};
    int i = 0;
    for (; i + LANES <= n; i += LANES) acc += load(a + i) * load(b + i);
    float total = sum(acc);
    for (; i < n; ++i) total += a[i] * b[i];
    return total;
}

// e^x within two units in the last place, without branches, so that loops over it become vector code.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

enum Activation { GELU_TANH, GELU_ERF, RELU, SILU, QUICK_GELU };

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Abramowitz and Stegun 1964, formula 7.1.26; absolute error below 1.5e-7.
inline float error_function(float x) {
    const float a = std::fabs(x), t = 1.0f / (1.0f + 0.3275911f * a);
    const float poly = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f);
    const float y = 1.0f - poly * t * exponential(-a * a);
    return x < 0 ? -y : y;
}

template <int KIND> void activate(const float* x, float* out, int n) {
    for (int i = 0; i < n; ++i) {
        const float v = x[i];
        if (KIND == GELU_TANH) out[i] = v * sigmoid(1.5957691216f * (v + 0.044715f * v * v * v));
        if (KIND == GELU_ERF) out[i] = 0.5f * v * (1.0f + error_function(v * 0.70710678119f));
        if (KIND == RELU) out[i] = v > 0 ? v : (v != v ? v : 0.0f);
        if (KIND == SILU) out[i] = v * sigmoid(v);
        if (KIND == QUICK_GELU) out[i] = v * sigmoid(1.702f * v);
    }
}

void activate(int kind, const float* x, float* out, int n) {
    switch (kind) {
        case GELU_TANH: return activate<GELU_TANH>(x, out, n);
        case GELU_ERF: return activate<GELU_ERF>(x, out, n);
        case RELU: return activate<RELU>(x, out, n);
        case SILU: return activate<SILU>(x, out, n);
        default: return activate<QUICK_GELU>(x, out, n);
    }
}

// One block of outputs for M rows: out[m] = x[m] w + bias. The block lies as [width, BLOCK], outputs side by side, so
// that memory is read straight through and no sum has to be taken across a vector.
template <int M, typename Weight>
inline void block(const Weight* w, int width, const float* bias, const float* x, int x_stride, float* out,
                  int out_stride) {
    constexpr int N = vectors_at_once(M);
    for (int from = 0; from < BLOCK; from += N * LANES) {
        Vector sums[M][N];
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) sums[m][n] = bias ? load(bias + from + n * LANES) : Vector{};
        const Weight* row = w + from;
        for (int k = 0; k < width; ++k, row += BLOCK) {
            const char* later = reinterpret_cast<const char*>(row) + ahead<Weight>;
            for (size_t line = 0; line < N * LANES * sizeof(Weight); line += 64) __builtin_prefetch(later + line, 0, 2);
            Vector weights[N];
            for (int n = 0; n < N; ++n) weights[n] = load(row + n * LANES);
            for (int m = 0; m < M; ++m) {
                const float value = x[m * x_stride + k];
                for (int n = 0; n < N; ++n) sums[m][n] += weights[n] * value;
            }
        }
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n)
                std::memcpy(out + size_t(m) * out_stride + from + n * LANES, &sums[m][n], sizeof(Vector));
    }
}

// The same for M rows or fewer; none for none.
template <int M, typename Weight>
void block_of_few(int rows, const Weight* w, int width, const float* bias, const float* x, int x_stride, float* out,
                  int out_stride) {
    if (rows == M) return block<M>(w, width, bias, x, x_stride, out, out_stride);
    if constexpr (M > 1) block_of_few<M - 1>(rows, w, width, bias, x, x_stride, out, out_stride);
}

template <typename Weight>
void block_of_rows(int rows, const Weight* w, int width, const float* bias, const float* x, int x_stride, float* out,
                   int out_stride) {
    for (; rows >= ROWS_AT_ONCE; rows -= ROWS_AT_ONCE) {
        block<ROWS_AT_ONCE>(w, width, bias, x, x_stride, out, out_stride);
        x += size_t(ROWS_AT_ONCE) * x_stride;
        out += size_t(ROWS_AT_ONCE) * out_stride;
    }
    block_of_few<ROWS_AT_ONCE - 1>(rows, w, width, bias, x, x_stride, out, out_stride);
}

// out [rows, outputs] = x [rows, width] w + bias, for the outputs [from, to), which are whole blocks.
template <typename Weight>
void affine(int rows, const Weight* w, const float* bias, int width, int from, int to, const float* x, int x_stride,
            float* out, int out_stride) {
    for (int o = from; o < to; o += BLOCK)
        block_of_rows(rows, w + size_t(o) * width, width, bias ? bias + o : nullptr, x, x_stride, out + o, out_stride);
}

// out [width] = the sum over t of shares [length] times values [length, width]; N vectors of it stay in registers.
template <int N> void mix(const float* shares, const float* values, int length, int width, int from, float* out) {
    Vector sums[N]{};
    for (int t = 0; t < length; ++t)
        for (int n = 0; n < N; ++n) sums[n] += load(values + size_t(t) * width + from + n * LANES) * shares[t];
    std::memcpy(out + from, sums, sizeof sums);
}

void mix(const float* shares, const float* values, int length, int width, float* out) {
    int from = 0;
    for (; from + 4 * LANES <= width; from += 4 * LANES) mix<4>(shares, values, length, width, from, out);
    for (; from + LANES <= width; from += LANES) mix<1>(shares, values, length, width, from, out);
    for (; from < width; ++from) {
        out[from] = 0;
        for (int t = 0; t < length; ++t) out[from] += shares[t] * values[size_t(t) * width + from];
    }
}

void layer_norm(const float* x, const float* gain, const float* shift, float eps, int width, float* scaled, float* out) {
    const float mean = sum(x, width) / width;
    Vector acc{};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Vector centred = load(x + i) - mean;
        acc += centred * centred;
    }
    float squares = sum(acc);
    for (; i < width; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / std::sqrt(squares / width + eps);
    for (i = 0; i < width; ++i) {
        scaled[i] = (x[i] - mean) * scale;
        out[i] = scaled[i] * gain[i] + shift[i];
    }
}

int padded(int outputs) { return (outputs + BLOCK - 1) / BLOCK * BLOCK; }

// A thread's share of the outputs, in whole blocks.
void share(int outputs, int thread, int threads, int& from, int& to) {
    const int blocks = padded(outputs) / BLOCK;
    from = int(int64_t(blocks) * thread / threads) * BLOCK;
    to = int(int64_t(blocks) * (thread + 1) / threads) * BLOCK;
}

}  // namespace

extern "C" {

// Sizes and constants of a model.
struct Shape {
    int32_t n_layer, n_head, d_model, d_head, d_mlp, d_vocab, activation, is_bfloat16;
    float eps;
};

// The parameters of one block of the model. Matrices lie as [outputs / BLOCK, in, BLOCK]; their biases are padded too.
struct BlockWeights {
    const float *ln1_w, *ln1_b, *b_qkv, *b_o, *ln2_w, *ln2_b, *b_in, *b_out;
    const void *w_qkv, *w_o, *w_in, *w_out;
    float scale;
};

struct Weights {
    const BlockWeights* blocks;
    const float *lnf_w, *lnf_b;
    const void* head;
};

// The checkpoints that a step can show: the member of `BlockLook` or `Look`, the name in the family's schema, the axes.
// `pellucid_shown` hands the table to the caller, who refuses one that does not fit the schema.
#define RESIDUAL "batch pos d_model"
#define PER_HEAD "batch pos head d_head"
#define ATTENTION "batch head query key"
#define HIDDEN "batch pos d_mlp"
#define SHOWN_IN_A_BLOCK(SHOWN) \
    SHOWN(resid_pre, "resid_pre", RESIDUAL) \
    SHOWN(ln1_scaled, "ln1.ckpt_scaled", RESIDUAL) \
    SHOWN(ln1_normalized, "ln1.ckpt_normalized", RESIDUAL) \
    SHOWN(q, "attn.ckpt_q", PER_HEAD) \
    SHOWN(k, "attn.ckpt_k", PER_HEAD) \
    SHOWN(v, "attn.ckpt_v", PER_HEAD) \
    SHOWN(scores, "attn.ckpt_scores", ATTENTION) \
    SHOWN(pattern, "attn.ckpt_pattern", ATTENTION) \
    SHOWN(z, "attn.ckpt_z", PER_HEAD) \
    SHOWN(attn_out, "attn.ckpt_attn_out", RESIDUAL) \
    SHOWN(resid_mid, "resid_mid", RESIDUAL) \
    SHOWN(ln2_scaled, "ln2.ckpt_scaled", RESIDUAL) \
    SHOWN(ln2_normalized, "ln2.ckpt_normalized", RESIDUAL) \
    SHOWN(pre, "mlp.ckpt_pre", HIDDEN) \
    SHOWN(post, "mlp.ckpt_post", HIDDEN) \
    SHOWN(mlp_out, "mlp.ckpt_mlp_out", RESIDUAL) \
    SHOWN(resid_post, "resid_post", RESIDUAL)
#define SHOWN_AFTER(SHOWN) \
    SHOWN(lnf_scaled, "ln_final.ckpt_scaled", RESIDUAL) \
    SHOWN(lnf_normalized, "ln_final.ckpt_normalized", RESIDUAL)

#define MEMBER(member, name, axes) float* member;
#define LINE(member, name, axes) name " " axes "\n"

// Where checkpoints go, [rows, ...] each; null where nobody looks.
struct BlockLook {
    SHOWN_IN_A_BLOCK(MEMBER)
};

struct Look {
    const BlockLook* blocks;
    SHOWN_AFTER(MEMBER)
};

// Keys and values [n_layer, 2, rows, n_head, capacity, d_head], of which `length` columns are filled.
struct Cache {
    float* content;
    const uint8_t* mask;  // [rows, capacity], 1 at tokens
    int32_t rows, capacity, length;
};

}  // extern "C"

namespace {

struct Workspace {
    std::vector<float> qkv, z, out, pre, post;
};

// A checkpoint [rows, width], from rows that are `stride` apart.
inline void show(float* to, const float* from, int rows, int width, int stride) {
    for (int m = 0; to && m < rows; ++m) std::memcpy(to + size_t(m) * width, from + size_t(m) * stride, width * 4);
}

// One head's part of a checkpoint [rows, heads, width].
inline void show_one(float* to, const float* from, size_t place, int width) {
    if (to) std::memcpy(to + place * width, from, width * sizeof(float));
}

template <typename Weight> class Step {
public:
    Step(const Shape& shape, const Weights& weights, const Look* look, const Cache& cache, float* residual, float* logits)
        : s(shape), w(weights), look(look), cache(cache), x(residual), logits(logits), rows(cache.rows), d(s.d_model),
          d_out(padded(s.d_model)), d_qkv(padded(3 * s.d_model)), d_hidden(padded(s.d_mlp)) {
        room.qkv.resize(size_t(d_qkv) * rows);
        room.z.resize(size_t(d) * rows);
        room.out.resize(size_t(d_out) * rows);
        room.pre.resize(size_t(d_hidden) * rows);
        room.post.resize(size_t(d_hidden) * rows);
    }

    void run(int threads) {
#pragma omp parallel num_threads(threads)
        {
            const int thread = omp_get_thread_num(), of = omp_get_num_threads();
            std::vector<float> scaled(size_t(d) * rows), normed(size_t(d) * rows), scores(cache.length + 1);
            for (int i = 0; i < s.n_layer; ++i) {
                attention(i, thread, of, scaled.data(), normed.data(), scores.data());
                feed_forward(i, thread, of, scaled.data(), normed.data());
            }
            norm(w.lnf_w, w.lnf_b, scaled.data(), normed.data());
            if (look && thread == 0) {
                show(look->lnf_scaled, scaled.data(), rows, d, d);
                show(look->lnf_normalized, normed.data(), rows, d, d);
            }
            int from, to;
            share(s.d_vocab, thread, of, from, to);
            affine(rows, static_cast<const Weight*>(w.head), nullptr, d, from, to, normed.data(), d, logits,
                   padded(s.d_vocab));
        }
    }

private:
    const Shape& s;
    const Weights& w;
    const Look* look;
    const Cache& cache;
    float* x;       // [rows, d_model], the residual stream
    float* logits;  // [rows, padded d_vocab]
    const int rows, d, d_out, d_qkv, d_hidden;
    Workspace room;

    // Every thread normalizes every row for itself: that is quicker than waiting for another.
    void norm(const float* gain, const float* shift, float* scaled, float* normed) {
        for (int m = 0; m < rows; ++m) {
            const size_t at = size_t(m) * d;
            layer_norm(x + at, gain, shift, s.eps, d, scaled + at, normed + at);
        }
    }

    void attention(int i, int thread, int of, float* scaled, float* normed, float* scores) {
        const BlockWeights& b = w.blocks[i];
        const BlockLook* at = look ? &look->blocks[i] : nullptr;
        int from, to;
        norm(b.ln1_w, b.ln1_b, scaled, normed);
        if (at && thread == 0) {
            show(at->resid_pre, x, rows, d, d);
            show(at->ln1_scaled, scaled, rows, d, d);
            show(at->ln1_normalized, normed, rows, d, d);
        }
        share(3 * d, thread, of, from, to);
        affine(rows, static_cast<const Weight*>(b.w_qkv), b.b_qkv, d, from, to, normed, d, room.qkv.data(), d_qkv);
#pragma omp barrier
        for (int pair = thread; pair < rows * s.n_head; pair += of)
            attend(i, pair / s.n_head, pair % s.n_head, b.scale, at, scores);
#pragma omp barrier
        share(d, thread, of, from, to);
        affine(rows, static_cast<const Weight*>(b.w_o), b.b_o, d, from, to, room.z.data(), d, room.out.data(), d_out);
        add(from, to);
#pragma omp barrier
        if (at && thread == 0) {
            show(at->z, room.z.data(), rows, d, d);
            show(at->attn_out, room.out.data(), rows, d, d_out);
            show(at->resid_mid, x, rows, d, d);
        }
    }

    void feed_forward(int i, int thread, int of, float* scaled, float* normed) {
        const BlockWeights& b = w.blocks[i];
        const BlockLook* at = look ? &look->blocks[i] : nullptr;
        int from, to;
        norm(b.ln2_w, b.ln2_b, scaled, normed);
        if (at && thread == 0) {
            show(at->ln2_scaled, scaled, rows, d, d);
            show(at->ln2_normalized, normed, rows, d, d);
        }
        share(s.d_mlp, thread, of, from, to);
        affine(rows, static_cast<const Weight*>(b.w_in), b.b_in, d, from, to, normed, d, room.pre.data(), d_hidden);
        for (int m = 0; m < rows; ++m) {
            const size_t begin = size_t(m) * d_hidden + from;
            activate(s.activation, room.pre.data() + begin, room.post.data() + begin, to - from);
        }
#pragma omp barrier
        share(d, thread, of, from, to);
        affine(rows, static_cast<const Weight*>(b.w_out), b.b_out, s.d_mlp, from, to, room.post.data(), d_hidden,
               room.out.data(), d_out);
        add(from, to);
        if (at && thread == 0) {
            show(at->pre, room.pre.data(), rows, s.d_mlp, d_hidden);
            show(at->post, room.post.data(), rows, s.d_mlp, d_hidden);
        }
#pragma omp barrier
        if (at && thread == 0) {
            show(at->mlp_out, room.out.data(), rows, d, d_out);
            show(at->resid_post, x, rows, d, d);
        }
    }

    // What a layer gives, into the residual stream, for this thread's share of its width.
    void add(int from, int to) {
        for (int m = 0; m < rows; ++m)
            for (int j = from; j < to && j < d; ++j) x[size_t(m) * d + j] += room.out[size_t(m) * d_out + j];
    }

    void attend(int i, int row, int head, float scale, const BlockLook* at, float* scores) {
        const int k = s.d_head, length = cache.length + 1;
        const size_t plane = size_t(cache.capacity) * k, side = size_t(rows) * s.n_head * plane;
        float* keys = cache.content + size_t(2 * i) * side + (size_t(row) * s.n_head + head) * plane;
        float* values = keys + side;
        const float* query = room.qkv.data() + size_t(row) * d_qkv + size_t(head) * k;
        const float* key = query + d;
        const float* value = key + d;
        std::memcpy(keys + size_t(cache.length) * k, key, k * sizeof(float));
        std::memcpy(values + size_t(cache.length) * k, value, k * sizeof(float));
        const size_t place = (size_t(row) * s.n_head + head);
        if (at) {
            show_one(at->q, query, place, k);
            show_one(at->k, key, place, k);
            show_one(at->v, value, place, k);
        }
        const float hidden = -std::numeric_limits<float>::max();
        const uint8_t* mask = cache.mask + size_t(row) * cache.capacity;
        float highest = hidden;
        for (int t = 0; t < length; ++t) {
            scores[t] = mask[t] ? dot(query, keys + size_t(t) * k, k) * scale : hidden;
            highest = scores[t] > highest ? scores[t] : highest;
        }
        if (at) show_one(at->scores, scores, place, length);
        for (int t = 0; t < length; ++t) scores[t] = exponential(scores[t] - highest) * float(mask[t]);
        const float share_of = 1.0f / sum(scores, length);
        for (int t = 0; t < length; ++t) scores[t] *= share_of;
        mix(scores, values, length, k, room.z.data() + size_t(row) * d + size_t(head) * k);
        if (at) show_one(at->pattern, scores, place, length);
    }
};

}  // namespace

extern "C" {

// The checkpoints that a step shows, one to a line with its axes: those of a block, an empty line, those after the blocks.
const char* pellucid_shown() { return SHOWN_IN_A_BLOCK(LINE) "\n" SHOWN_AFTER(LINE); }

// Bytes of Shape, BlockWeights, Weights and Cache, in this order.
const int32_t* pellucid_sizes() {
    static const int32_t sizes[] = {sizeof(Shape), sizeof(BlockWeights), sizeof(Weights), sizeof(Cache)};
    return sizes;
}

// Runs one column of each row behind the cache's columns. `residual` [rows, d_model] holds the embeddings' sums and is
// used up; `logits` [rows, padded d_vocab] is written. The caller has set the mask of the new column.
void pellucid_step(const Shape* shape, const Weights* weights, const Look* look, const Cache* cache, float* residual,
                   float* logits, int32_t threads) {
    if (shape->is_bfloat16)
        Step<bfloat16>(*shape, *weights, look, *cache, residual, logits).run(threads);
    else
        Step<float>(*shape, *weights, look, *cache, residual, logits).run(threads);
}

}  // extern "C"
