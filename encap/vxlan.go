package encap

import (
	"encoding/binary"
	"fmt"
)

// VXLAN header, RFC 7348 section 5; the names of the flag bits are those of include/net/vxlan.h.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|R|R|R|R|I|R|R|R|            Reserved                           |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                VXLAN Network Identifier (VNI) |   Reserved    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
const (
	// VXLANHeaderLen is the length of the VXLAN header in bytes.
	VXLANHeaderLen = 8
	// VXLANPort is the UDP port of Linux and flannel; IANA's is 4789.
	VXLANPort = 8472

	vxlanFlagVNI = 0x08000000 // the I flag: the VNI is valid
	// Group based policy (draft-smith-vxlan-group-policy): the G flag, and behind it D, A and the group policy ID.
	vxlanFlagGBP  = 0x80000000
	vxlanFieldGBP = 0x0048ffff
	// Generic protocol extension (draft-ietf-nvo3-vxlan-gpe): the P flag, the next protocol, and the B and O flags.
	vxlanFlagGPE   = 0x04000000
	vxlanFieldGPE  = 0x000000ff
	vxlanFlagsBOAM = 0x03000000
	vniMax         = 1<<24 - 1
)

// VNI is a VXLAN network identifier: 24 bits. NewVNI checks the range.
type VNI uint32

// NewVNI returns v as a VNI, or an error when it needs more than 24 bits.
func NewVNI(v uint64) (VNI, error) {
	if v > vniMax {
		return 0, fmt.Errorf("vni %d: out of range 0-%d", v, vniMax)
	}
	return VNI(v), nil
}

// PutVXLAN writes a header with the I flag, vni and zero in all other bits to b, which holds at least VXLANHeaderLen bytes.
func PutVXLAN(b []byte, vni VNI) {
	_ = b[VXLANHeaderLen-1]
	binary.BigEndian.PutUint32(b[0:], vxlanFlagVNI)
	binary.BigEndian.PutUint32(b[4:], uint32(vni)<<8)
}

// ReservedBits says what a set flag or reserved bit other than I means on receive.
type ReservedBits uint8

const (
	// StrictBits drops the datagram as Linux does (drivers/net/vxlan/vxlan_core.c, vxlan_rcv).
	StrictBits ReservedBits = iota
	// IgnoreBits ignores such bits, as RFC 7348 section 5 asks.
	IgnoreBits
)

// DecodeVXLAN reads the header at the start of datagram. The reason is PktTooSmall, VXLANInvalidHdr, or ExtensionNotEnabled for a
// header of GBP or GPE, or None. IgnoreBits takes one of GBP, behind which there is a frame as ever, but never one of GPE. A flag
// of theirs alone, without what it speaks of, is a reserved bit like any other: no sender makes such (drivers/net/vxlan/vxlan_core.c,
// vxlan_build_gbp_hdr).
func DecodeVXLAN(datagram []byte, mode ReservedBits) (VNI, Reason) {
	if len(datagram) < VXLANHeaderLen {
		return 0, PktTooSmall
	}
	flags := binary.BigEndian.Uint32(datagram[0:])
	vni := binary.BigEndian.Uint32(datagram[4:])
	if flags&vxlanFlagVNI == 0 {
		return 0, VXLANInvalidHdr
	}
	gbp := flags&^vxlanFieldGBP == vxlanFlagVNI|vxlanFlagGBP && flags&vxlanFieldGBP != 0
	gpe := flags&^(vxlanFieldGPE|vxlanFlagsBOAM) == vxlanFlagVNI|vxlanFlagGPE && flags&vxlanFieldGPE != 0
	if mode == IgnoreBits { // whatever else is set: what is behind it may be anything
		gpe = flags&vxlanFlagGPE != 0 && flags&vxlanFieldGPE != 0
	}
	if gpe || gbp && mode == StrictBits {
		return 0, ExtensionNotEnabled
	}
	if mode == StrictBits && (flags != vxlanFlagVNI || vni&0xff != 0) {
		return 0, VXLANInvalidHdr
	}
	return VNI(vni >> 8), None
}
