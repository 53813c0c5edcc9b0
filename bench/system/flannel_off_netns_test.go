//go:build netns && !(flannel && cgo && amd64)

package system

const haveFlannel = false
