#!/bin/sh
# Run .tflite files on an Android device by adb, with the official benchmark_model, and keep what
# it prints. ADB.md says where the binary is from and what to do with the log.
#
#   sh adb_benchmark.sh BENCHMARK_MODEL LOG FILE.tflite...
#
# From the environment: THREADS (1), SECONDS_EACH (2) of a run, ROUNDS (5) between files, and CORES,
# a mask in hexadecimal for taskset, such as f0 for cores 4 to 7 (all if unset).
set -eu

fail() {
  echo "adb_benchmark.sh: error: $1" >&2
  exit 2
}

digest() {
  if command -v sha256sum >/dev/null; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -c 1-64
}

[ $# -ge 3 ] || fail "give the binary, the log to write, and .tflite files"
binary=$1 log=$2
shift 2
threads=${THREADS:-1} seconds=${SECONDS_EACH:-2} rounds=${ROUNDS:-5} cores=${CORES:-}
command -v adb >/dev/null || fail "adb is not installed; it is in Android's platform tools"
[ -f "$binary" ] || fail "no file '$binary'; ADB.md says where benchmark_model is from"
for file; do
  [ -f "$file" ] || fail "no file '$file'; give the path of a .tflite file"
done
[ -d "$(dirname "$log")" ] || fail "'$log' cannot be written; choose another path"
state=$(adb get-state 2>/dev/null || true)
[ "$state" = device ] || fail "adb reaches no device, or several; see adb devices"

there=/data/local/tmp/fedsparse-benchmark
written=$log.tmp-$$ one=$log.one-$$
trap 'rm -f "$written" "$one"; adb shell rm -rf "$there" >/dev/null 2>&1 || true' EXIT
trap 'exit 130' INT TERM

adb shell mkdir -p "$there"
adb push "$binary" "$there/benchmark_model" >/dev/null
adb shell chmod 755 "$there/benchmark_model"
number=0
for file; do
  number=$((number + 1))
  adb push "$file" "$there/$number.tflite" >/dev/null
done

thermal() {
  adb shell "dumpsys thermalservice 2>/dev/null | grep -m 1 'Thermal Status'" || true
}

{
  echo "fedsparse: log 1"
  echo "fedsparse: name $(adb shell getprop ro.product.model)"
  echo "fedsparse: threads $threads"
  echo "fedsparse: before $(thermal)"
  adb shell "cat /proc/meminfo | grep -E '^Mem(Total|Available)'"
  round=0
  while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    number=0
    for file; do
      number=$((number + 1))
      echo "round $round of $rounds: $file" >&2
      echo "fedsparse: file $(basename "$file")"
      echo "fedsparse: sha256 $(digest "$file")"
      echo "fedsparse: bytes $(wc -c <"$file" | tr -d ' ')"
      adb shell "${cores:+taskset $cores }$there/benchmark_model \
        --graph=$there/$number.tflite --num_threads=$threads --use_xnnpack=true \
        --min_secs=$seconds 2>&1" </dev/null >"$one" ||
        fail "benchmark_model fails on '$file': $(tail -n 1 "$one")"
      cat "$one"
    done
  done
  echo "fedsparse: after $(thermal)"
} >"$written"
mv "$written" "$log"
echo "written: $log"
