// Logits of many rows (centroids, page bounds): as they are stored, or as codes.
#pragma once
#include "attention.h"
#include "codes.h"

// logit[h][c] = finished scores of rows [from, to) for all heads of a group
template <class L, class T>
void score_rows(const Heads& s, const T* rows, long from, long to, long C, const Form& f,
                float* logit) {
  alignas(64) float score[SCORES];
  Tokens<T> now, next;
  auto fill = [&](Tokens<T>& block, long start) {
    block.n = std::clamp(to - start, 0L, (long)BLOCK);
    for (int i = 0; i < (block.n + 7) / 8 * 8; i++)
      block.k[i] = rows + (start + std::min(i, block.n - 1)) * f.D;
  };
  fill(now, from);
  for (long start = from; start < to; start += BLOCK) {
    fill(next, start + BLOCK);
    L::scores(s.q, now.k, (now.n + 7) / 8 * 8, f.D, &next, score);
    finish_scores<L>(score, now.n, f.scale, f.softcap);
    for (int h = 0; h < s.used; h++) L::copy(score, h, now.n, logit + h * C + start);
    std::swap(now, next);
  }
}

// Codes of SIDE rows side by side, so that a vector holds as many rows (LaneCodes in codes.py).
constexpr int SIDE = 16;

struct LaneCodes {
  const int32_t* word;  // [rows / SIDE][D * bits / 32][SIDE]
  const f16* scale;     // [rows / SIDE][blocks][SIDE]
  const float* mean;
  int bits;

  int words(int D) const { return D * bits / 32; }
  int blocks(int D) const { return bits == 4 ? D / BLOCK_DIMS : 1; }
  LaneCodes head(long i, long C, int D) const {
    long rows = (C + SIDE - 1) / SIDE * SIDE;
    return {word + i * rows * words(D), scale + i * rows * blocks(D), mean + i * D, bits};
  }
};

// Queries in the order in which words are read, and products with a word of W rows each. The k-th
// number of a word: even dims are in its lower half, odd ones in the other.
template <int BITS, int NH> struct Widened {  // in fp32
  static constexpr int NUMBERS = 32 / BITS, HALF = NUMBERS / 2, DIMS = 1;  // of a query's entry
  using Sum = vf;
  using Query = float;
  static float order(const float* q, int dims, Query* to) {
    for (int d = 0; d < dims; d++) {
      int k = d % NUMBERS;
      to[d * NH] = q[d - k + (k < HALF ? 2 * k : 2 * (k - HALF) + 1)];
    }
    return 1;
  }
  static void add(const int32_t* word, const Query*& q, Sum (&sum)[2][NH]) {
    vi x = *(const vi_u*)word;
    for (int k = 0; k < NUMBERS; k++, q += NH) {
      vf number = __builtin_convertvector((x << (32 - BITS * (k + 1))) >> (32 - BITS), vf);
      for (int h = 0; h < NH; h++) sum[k % 2][h] += number * q[h];
    }
  }
  static vf total(vf a, vf b) { return a + b; }
};
#if defined(__AVX512BW__)
// In whole numbers, two dims at a time: of a query, 15 bits and a sign for each block.
template <int BITS, int NH> struct Whole {
  static constexpr int NUMBERS = 16 / BITS, DIMS = 2;
  using Sum = __m512i;
  using Query = int32_t;
  static float order(const float* q, int dims, Query* to) {
    float most = 1e-30f;
    for (int d = 0; d < dims; d++) most = std::max(most, std::abs(q[d]));
    auto whole = [&](float x) { return (int32_t)std::lrint(x * (32767 / most)); };
    for (int d = 0; d < dims; d += 2) to[d / 2 * NH] = (whole(q[d]) & 0xffff) | whole(q[d + 1]) << 16;
    return most / 32767;
  }
  static void add(const int32_t* word, const Query*& q, Sum (&sum)[2][NH]) {
    __m512i x = _mm512_loadu_si512(word);
    for (int k = 0; k < NUMBERS; k++, q += NH) {
      __m512i pair = _mm512_slli_epi16(x, 16 - BITS * (k + 1));
      pair = _mm512_srai_epi16(pair, 16 - BITS);
      for (int h = 0; h < NH; h++) {
        __m512i& to = sum[k % 2][h];
#if defined(__AVX512VNNI__)
        to = _mm512_dpwssd_epi32(to, pair, _mm512_set1_epi32(q[h]));
#else
        to = _mm512_add_epi32(to, _mm512_madd_epi16(pair, _mm512_set1_epi32(q[h])));
#endif
      }
    }
  }
  static vf total(Sum a, Sum b) { return (vf)_mm512_cvtepi32_ps(_mm512_add_epi32(a, b)); }
};
#else
template <int BITS, int NH> using Whole = Widened<BITS, NH>;
#endif

// logit[h][c] = finished scores of rows [from, to) for NH heads; `from` is a multiple of SIDE.
template <int NH, class Products>
void score_lanes(const float* query, const LaneCodes& c, long from, long to, long C, const Form& f,
                 float* logit) {
  int blocks = c.blocks(f.D), dims = f.D / blocks, words = c.words(f.D) / blocks;
  int entries = dims / Products::DIMS * NH;  // of a block's queries
  std::vector<typename Products::Query> ordered(blocks * entries);
  std::vector<float> factor(blocks * NH);
  float base[NH] = {};  // of the mean
  for (int h = 0; h < NH; h++) {
    const float* q = query + h * f.D;
    for (int b = 0; b < blocks; b++)
      factor[b * NH + h] = Products::order(q + b * dims, dims, &ordered[b * entries + h]);
    for (int d = 0; d < f.D; d++) base[h] += q[d] * c.mean[d];
  }
  for (long start = from; start < to; start += W) {
    long side = start / SIDE, lane = start % SIDE;
    const int32_t* word = c.word + side * blocks * words * SIDE + lane;
    const f16* scale = c.scale + side * blocks * SIDE + lane;
    const auto* q = ordered.data();
    vf total[NH];
    for (int h = 0; h < NH; h++) total[h] = splat(base[h]);
    for (int b = 0; b < blocks; b++, scale += SIDE) {
      typename Products::Sum sum[2][NH] = {};
      for (int i = 0; i < words; i++, word += SIDE) Products::add(word, q, sum);
      vf step = widen(scale);
      for (int h = 0; h < NH; h++)
        total[h] += Products::total(sum[0][h], sum[1][h]) * (step * factor[b * NH + h]);
    }
    for (int h = 0; h < NH; h++) {
      vf x = finished(total[h], f.scale, f.softcap);
      float* out = logit + h * C + start;
      if (start + W <= to) store(out, x);
      else for (long i = 0; i < to - start; i++) out[i] = x[i];
    }
  }
}

template <int NH>
void score_heads(const float* q, const LaneCodes& c, long from, long to, long C, const Form& f,
                 float* logit) {
  auto score = c.bits == 4 ? score_lanes<NH, Whole<4, NH>> : score_lanes<NH, Whole<8, NH>>;
  score(q, c, from, to, C, f, logit);
}

static void score_coded_group(const float* q, int group, const LaneCodes& c, long from, long to,
                              long C, const Form& f, float* logit) {
  for (int h = 0; h < group; h += MAX_HEADS) {
    int used = std::min(MAX_HEADS, group - h);
    auto score = used == 1 ? score_heads<1> : used == 2 ? score_heads<2>
               : used == 3 ? score_heads<3> : score_heads<4>;
    score(q + h * f.D, c, from, to, C, f, logit + h * C);
  }
}

template <class T>
void score_group(const float* q, int group, const T* rows, long from, long to, long C,
                 const Form& f, float* logit) {
  for (int h = 0; h < group; h += MAX_HEADS) {
    int used = std::min(MAX_HEADS, group - h);
    with_lanes<T>(used, f.dot, [&](auto lanes) {
      using L = decltype(lanes);
      Heads s;
      s.load<L>(q + h * f.D, used, f.D);
      score_rows<L>(s, rows, from, to, C, f, logit + h * C);
    });
  }
}
