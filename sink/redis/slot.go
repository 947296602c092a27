package redis

import (
	"bytes"
	"strconv"
	"sync"
)

// slots is the number of hash slots of a Redis Cluster.
const slots = 16384

// slotOf returns the hash slot of a key, as the Redis Cluster specification defines it:
// CRC16 (XMODEM) of the key, or of its hash tag if it has one.
func slotOf(key []byte) uint16 {
	if tag, ok := hashTag(key); ok {
		key = tag
	}
	return crc16(key) % slots
}

// hashTag returns what stands between the first '{' and the first '}' behind it, unless
// that is nothing.
func hashTag(key []byte) ([]byte, bool) {
	open := bytes.IndexByte(key, '{')
	if open < 0 {
		return nil, false
	}
	n := bytes.IndexByte(key[open+1:], '}')
	if n <= 0 {
		return nil, false
	}
	return key[open+1 : open+1+n], true
}

// crcTable is that of CRC16 with the polynomial 0x1021.
var crcTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i) << 8
		for range 8 {
			if c&0x8000 != 0 {
				c = c<<1 ^ 0x1021
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc16(s []byte) uint16 {
	var c uint16
	for _, b := range s {
		c = c<<8 ^ crcTable[byte(c>>8)^b]
	}
	return c
}

// slotTags has for each slot a short text that hashes to it.
var slotTags = sync.OnceValue(func() *[slots]string {
	var tags [slots]string
	for n, left := 0, slots; left > 0; n++ {
		s := strconv.Itoa(n)
		if slot := crc16([]byte(s)) % slots; tags[slot] == "" {
			tags[slot] = s
			left--
		}
	}
	return &tags
})
