// CRC-32 as in zlib: by carry-less multiplication where the processor has it, else by tables of
// eight bytes at a time.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#ifdef __PCLMUL__
#include <immintrin.h>
#endif

#include "lanes.h"

namespace fedsparse {
namespace FS_ISA {

typedef std::array<std::array<uint32_t, 256>, 8> CrcTables;

// tables[k][b]: what a byte b does to the register that k more bytes are then read into.
constexpr CrcTables crc_tables() {
  CrcTables tables{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0u);
    tables[0][byte] = value;
  }
  for (int k = 1; k < 8; k++)
    for (uint32_t byte = 0; byte < 256; byte++) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = before >> 8 ^ tables[0][before & 255];
    }
  return tables;
}

// The register after some more bytes. Words are put together byte by byte: any byte order.
inline uint32_t crc_by_tables(uint32_t crc, const uint8_t* bytes, int64_t count) {
  static constexpr CrcTables TABLES = crc_tables();
  for (; count >= 8; count -= 8, bytes += 8) {
    const uint32_t low =
        crc ^ (bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<uint32_t>(bytes[3]) << 24);
    crc = TABLES[7][low & 255] ^ TABLES[6][low >> 8 & 255] ^ TABLES[5][low >> 16 & 255] ^
          TABLES[4][low >> 24] ^ TABLES[3][bytes[4]] ^ TABLES[2][bytes[5]] ^ TABLES[1][bytes[6]] ^
          TABLES[0][bytes[7]];
  }
  for (; count > 0; count--, bytes++) crc = crc >> 8 ^ TABLES[0][(crc ^ *bytes) & 255];
  return crc;
}

#ifdef __PCLMUL__

// Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction",
// Intel 2009: 16 bytes are moved on by as many as lie between them and the next, without
// changing the remainder. `by` holds the powers of x that move them.
FS_INLINE __m128i crc_folded(__m128i bytes, __m128i by, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(bytes, by, 0x00);
  const __m128i high = _mm_clmulepi64_si128(bytes, by, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

inline uint32_t crc_more(uint32_t crc, const uint8_t* bytes, int64_t count) {
  if (count < 64) return crc_by_tables(crc, bytes, count);
  const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
  const __m128i by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
  const auto at = [&](int64_t place) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + place));
  };
  __m128i a = _mm_xor_si128(at(0), _mm_cvtsi32_si128(static_cast<int32_t>(crc)));
  __m128i b = at(16), c = at(32), d = at(48);
  int64_t done = 64;
  for (; done + 64 <= count; done += 64) {
    a = crc_folded(a, by_64, at(done));
    b = crc_folded(b, by_64, at(done + 16));
    c = crc_folded(c, by_64, at(done + 32));
    d = crc_folded(d, by_64, at(done + 48));
  }
  a = crc_folded(crc_folded(crc_folded(a, by_16, b), by_16, c), by_16, d);
  for (; done + 16 <= count; done += 16) a = crc_folded(a, by_16, at(done));
  uint8_t rest[16];
  std::memcpy(rest, &a, sizeof rest);
  return crc_by_tables(crc_by_tables(0, rest, sizeof rest), bytes + done, count - done);
}

#else

inline uint32_t crc_more(uint32_t crc, const uint8_t* bytes, int64_t count) {
  return crc_by_tables(crc, bytes, count);
}

#endif

}  // namespace FS_ISA
}  // namespace fedsparse
