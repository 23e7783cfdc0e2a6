// Reads memory as fast as the machine can: the ceiling of every kernel here.
#include "simd.h"

extern "C" int64_t retrobench_read(const void* data, int64_t bytes, int32_t threads) {
  constexpr int64_t STEP = 16 * W;  // bytes of four vectors
  int64_t steps = bytes / STEP, total = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : total)
  for (int64_t part = 0; part < threads; part++) {
    vi a{}, b{}, c{}, d{};
    for (int64_t i = steps * part / threads; i < steps * (part + 1) / threads; i++) {
      const vi_u* p = (const vi_u*)((const char*)data + i * STEP);
      a += p[0];
      b += p[1];
      c += p[2];
      d += p[3];
    }
    a += b + (c + d);
    for (int j = 0; j < W; j++) total += a[j];
  }
  return total;
}
