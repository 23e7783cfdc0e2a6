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

// The same of codes, which are never written out as numbers.
template <int NH>
void score_codes(const Heads& s, const Codes& c, long from, long to, long C, const Form& f,
                 float* logit) {
  constexpr int KEYS = 8 / NH;
  alignas(64) float score[SCORES];
  float base[NH];  // of the mean
  for (int h = 0; h < NH; h++) {
    vf sum = vf{};
    for (int d = 0; d < f.D; d += W) sum += load(&s.q[h * f.D + d]) * load(c.mean + d);
    base[h] = 0;
    for (int j = 0; j < W; j++) base[h] += sum[j];
  }
  for (long start = from; start < to; start += BLOCK) {
    int n = std::min<long>(BLOCK, to - start);
    for (int i = 0; i < n; i += KEYS) {
      vf a[8] = {};
      for (int j = 0; j < KEYS; j++)
        c.walk(start + std::min(i + j, n - 1), f.D, [&](int low, int high, vf x, vf y) {
          for (int h = 0; h < NH; h++) {
            const float* q = &s.q[h * f.D];
            a[j * NH + h] += load(q + low) * x + load(q + high) * y;
          }
        });
      sum8(a, score + i * NH);
    }
    for (int i = 0; i < n; i++)
      for (int h = 0; h < NH; h++) score[i * NH + h] += base[h];
    finish_scores<Interleaved<float, NH>>(score, n, f.scale, f.softcap);
    for (int h = 0; h < s.used; h++)
      for (int i = 0; i < n; i++) logit[h * C + start + i] = score[i * NH + h];
  }
}

#if defined(__AVX512BF16__)
// The same for queries that are exact in bf16, as the codes are: four keys at a time, in the order
// of `Quads`. Sums of whole numbers are scaled, block by block.
template <int BITS>
void score_codes_bf16(const Heads& s, const Codes& c, long from, long to, long C, const Form& f,
                      float* logit) {
  using L = Quads;
  alignas(64) float score[SCORES];
  float base[MAX_HEADS] = {};  // of the mean
  for (int h = 0; h < s.used; h++)
    for (int d = 0; d < f.D; d++) base[h] += L::query(s.q, h, d) * c.mean[d];
  const __m512i* q = (const __m512i*)s.q.data();  // a vector for every eight dims
  for (long start = from; start < to; start += BLOCK) {
    int n = std::min<long>(BLOCK, to - start);
    for (int i = 0; i < n; i += 4) {
      __m512 a[4];
      for (int j = 0; j < 4; j++) {
        long row = start + std::min(i + j, n - 1);
        const int8_t* p = c.code + row * c.row_bytes(f.D);
        const f16* step = c.scale + row * c.blocks(f.D);
        a[j] = _mm512_setzero_ps();
        for (int d = 0; d < f.D; d += BLOCK_DIMS, p += BLOCK_DIMS * BITS / 8) {
          __m512i x = BITS == 4 ? codes_of_4_bits(p) : codes_of_8_bits(p);
          __m512 part = BITS == 4 ? _mm512_setzero_ps() : a[j];
          auto add = [&](__m512i eight, int k) {
            part = _mm512_dpbf16_ps(part, (__m512bh)_mm512_loadu_si512(q + d / 8 + k), (__m512bh)eight);
          };
          add(_mm512_shuffle_i32x4(x, x, 0x00), 0);
          add(_mm512_shuffle_i32x4(x, x, 0x55), 1);
          add(_mm512_shuffle_i32x4(x, x, 0xaa), 2);
          add(_mm512_shuffle_i32x4(x, x, 0xff), 3);
          a[j] = BITS == 4 ? a[j] + part * number(*step++) : part;
        }
        if (BITS == 8) a[j] *= number(*step);
      }
      _mm512_storeu_ps(score + i * 4, L::sums(a));
    }
    for (int i = 0; i < n; i++)
      for (int h = 0; h < s.used; h++) score[L::at(i, h)] += base[h];
    finish_scores<L>(score, n, f.scale, f.softcap);
    for (int h = 0; h < s.used; h++) L::copy(score, h, n, logit + h * C + start);
  }
}
#endif

// `exact`: the queries are exact in bf16.
static void score_coded_group(const float* q, int group, const Codes& c, long from, long to,
                              long C, const Form& f, [[maybe_unused]] bool exact,
                              float* logit) {
  for (int h = 0; h < group; h += MAX_HEADS) {
    int used = std::min(MAX_HEADS, group - h);
    Heads s;
#if defined(__AVX512BF16__)
    if (exact) {
      s.load<Quads>(q + h * f.D, used, f.D);
      auto score = c.bits == 4 ? score_codes_bf16<4> : score_codes_bf16<8>;
      score(s, c, from, to, C, f, logit + h * C);
      continue;
    }
#endif
    with_lanes<float>(used, false, [&](auto lanes) {
      using L = decltype(lanes);
      s.load<L>(q + h * f.D, used, f.D);
      score_codes<L::HEADS>(s, c, from, to, C, f, logit + h * C);
    });
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
