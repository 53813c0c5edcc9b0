package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/flannel-io/flannel/pkg/subnet/etcd"
	"k8s.io/klog/v2"
)

// options are flanneld's flags (main.go of flannel v0.28.9), with its names, defaults and words, and --metrics.
type options struct {
	etcdEndpoints, etcdPrefix            string
	etcdKeyfile, etcdCertfile            string
	etcdCAFile                           string
	etcdUsername, etcdPassword           string
	version                              bool
	kubeSubnetMgr                        bool
	kubeAPIURL, kubeConfigFile           string
	kubeAnnotationPrefix, netConfPath    string
	setNodeNetworkUnavailable            bool
	iface, ifaceRegex                    list
	ifaceCanReach                        string
	publicIP, publicIPv6                 string
	subnetFile                           string
	subnetLeaseRenewMargin               int
	ipMasq, ipMasqRandomFullyDisable     bool
	iptablesForwardRules, blackholeRoute bool
	iptablesResyncSeconds                int
	healthzIP                            string
	healthzPort                          int
	metrics                              string
}

// etcdConfig says how to reach etcd.
func (o *options) etcdConfig() *etcd.EtcdConfig {
	return &etcd.EtcdConfig{
		Endpoints: strings.Split(o.etcdEndpoints, ","), Prefix: o.etcdPrefix,
		Keyfile: o.etcdKeyfile, Certfile: o.etcdCertfile, CAFile: o.etcdCAFile, Username: o.etcdUsername, Password: o.etcdPassword,
	}
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return fmt.Sprintf("%v", *l) }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

// envPrefix begins the names of the variables that stand for flags: FLANNELD_ETCD_ENDPOINTS for --etcd-endpoints.
const envPrefix = "FLANNELD_"

// parse reads flags, and variables for those that are not given. What is wrong with the flags has been written to stderr.
func parse(args []string, env func(string) (string, bool), stderr io.Writer) (*options, error) {
	o := new(options)
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(stderr, "Usage: %s [OPTION]...\n       %s cleanup    remove the devices that are left behind for the next start\n", args[0], args[0])
		fs.PrintDefaults()
	}
	o.define(fs)
	if err := addKlogFlags(fs); err != nil {
		return nil, err
	}
	if err := fs.Parse(args[1:]); err != nil {
		return nil, err
	}
	if o.version {
		return o, nil
	}
	o.fromEnvironment(fs, env)
	return o, nil
}

func (o *options) define(fs *flag.FlagSet) {
	fs.StringVar(&o.etcdEndpoints, "etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "a comma-delimited list of etcd endpoints")
	fs.StringVar(&o.etcdPrefix, "etcd-prefix", "/coreos.com/network", "etcd prefix")
	fs.StringVar(&o.etcdKeyfile, "etcd-keyfile", "", "SSL key file used to secure etcd communication")
	fs.StringVar(&o.etcdCertfile, "etcd-certfile", "", "SSL certification file used to secure etcd communication")
	fs.StringVar(&o.etcdCAFile, "etcd-cafile", "", "SSL Certificate Authority file used to secure etcd communication")
	fs.StringVar(&o.etcdUsername, "etcd-username", "", "username for BasicAuth to etcd")
	fs.StringVar(&o.etcdPassword, "etcd-password", "", "password for BasicAuth to etcd")
	fs.Var(&o.iface, "iface", "interface to use (IP or name) for inter-host communication. Can be specified multiple times to check each option in order. Returns the first match found.")
	fs.Var(&o.ifaceRegex, "iface-regex", "regex expression to match the first interface to use (IP or name) for inter-host communication. Can be specified multiple times to check each regex in order. Returns the first match found. Regexes are checked after specific interfaces specified by the iface option have already been checked.")
	fs.StringVar(&o.ifaceCanReach, "iface-can-reach", "", "detect interface to use (IP or name) for inter-host communication based on which will be used for provided IP. This is exactly the interface to use of command 'ip route get <ip-address>'")
	fs.StringVar(&o.subnetFile, "subnet-file", "/run/flannel/subnet.env", "filename where env variables (subnet, MTU, ... ) will be written to")
	fs.StringVar(&o.publicIP, "public-ip", "", "IP accessible by other nodes for inter-host communication")
	fs.StringVar(&o.publicIPv6, "public-ipv6", "", "IPv6 accessible by other nodes for inter-host communication")
	fs.IntVar(&o.subnetLeaseRenewMargin, "subnet-lease-renew-margin", 60, "subnet lease renewal margin, in minutes, ranging from 1 to 1439")
	fs.BoolVar(&o.ipMasq, "ip-masq", false, "setup IP masquerade rule for traffic destined outside of overlay network")
	fs.BoolVar(&o.ipMasqRandomFullyDisable, "ip-masq-fully-random-disable", false, "disable fully-random mode for MASQUERADE")
	fs.BoolVar(&o.kubeSubnetMgr, "kube-subnet-mgr", false, "contact the Kubernetes API for subnet assignment instead of etcd.")
	fs.StringVar(&o.kubeAPIURL, "kube-api-url", "", "Kubernetes API server URL. Does not need to be specified if flannel is running in a pod.")
	fs.StringVar(&o.kubeAnnotationPrefix, "kube-annotation-prefix", "flannel.alpha.coreos.com", `Kubernetes annotation prefix. Can contain single slash "/", otherwise it will be appended at the end.`)
	fs.StringVar(&o.kubeConfigFile, "kubeconfig-file", "", "kubeconfig file location. Does not need to be specified if flannel is running in a pod.")
	fs.BoolVar(&o.version, "version", false, "print version and exit")
	fs.StringVar(&o.healthzIP, "healthz-ip", "0.0.0.0", "the IP address for healthz server to listen")
	fs.IntVar(&o.healthzPort, "healthz-port", 0, "the port for healthz server to listen(0 to disable)")
	fs.StringVar(&o.metrics, "metrics", "", "address and port that serves Prometheus metrics, such as 127.0.0.1:9472 (default off; flanneld has no such flag)")
	fs.IntVar(&o.iptablesResyncSeconds, "iptables-resync", 5, "resync period for iptables rules, in seconds")
	fs.BoolVar(&o.iptablesForwardRules, "iptables-forward-rules", true, "add default accept rules to FORWARD chain in iptables")
	fs.BoolVar(&o.blackholeRoute, "ip-blackhole-route", false, "add blackroute route ont the node for the local podCIDR")
	fs.StringVar(&o.netConfPath, "net-config-path", "/etc/kube-flannel/net-conf.json", "path to the network configuration file")
	fs.BoolVar(&o.setNodeNetworkUnavailable, "set-node-network-unavailable", true, "set NodeNetworkUnavailable after ready")
}

// addKlogFlags adds the three flags of klog, which flannel's packages log with, that flanneld has.
func addKlogFlags(fs *flag.FlagSet) error {
	all := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(all)
	err := errors.Join(
		all.Set("logtostderr", "true"),
		all.Set("legacy_stderr_threshold_behavior", "false"),
		all.Set("stderrthreshold", "INFO"),
	)
	for _, name := range []string{"v", "vmodule", "log_backtrace_at"} {
		f := all.Lookup(name)
		fs.Var(f.Value, f.Name, f.Usage)
	}
	return err
}

// fromEnvironment sets the flags that were not given from their variables. A value that does not fit is logged and passed
// over, as flanneld does.
func (o *options) fromEnvironment(fs *flag.FlagSet, env func(string) (string, bool)) {
	given := make(map[string]bool)
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	fs.VisitAll(func(f *flag.Flag) {
		name := envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := env(name)
		if given[f.Name] || !ok || value == "" {
			return
		}
		before := f.Value.String()
		if err := fs.Set(f.Name, value); err != nil {
			_ = f.Value.Set(before) // a number is 0 by now
			klog.Errorf("variable %s: invalid value %q for --%s: %v", name, value, f.Name, err)
		}
	})
}
