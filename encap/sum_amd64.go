package encap

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

// vectorMin is the fewest bytes that are worth starting the vector unit for (BenchmarkChecksum).
const vectorMin = 256

// vectorBlock is what sumAVX2 takes a multiple of, in bytes.
const vectorBlock = 32

var hasVectorSum = cpu.X86.HasAVX2

//go:noescape
func sumAVX2(p *byte, n int) uint64

// vectorSum adds up as much of b as the vector unit can take, at least vectorMin bytes, as little-endian words: sum is
// not reduced, rest is what is left of b.
func vectorSum(b []byte) (sum uint64, rest []byte) {
	n := len(b) &^ (vectorBlock - 1)
	return sumAVX2(unsafe.SliceData(b), n), b[n:]
}
