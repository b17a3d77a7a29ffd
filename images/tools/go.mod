module hpk.io/tools

go 1.26.0

require github.com/apptainer/sif/v2 v2.21.1

require (
	github.com/containernetworking/cni v1.3.0 // indirect
	github.com/google/go-containerregistry v0.20.3 // indirect
	github.com/google/uuid v1.6.0 // indirect
)

tool github.com/containernetworking/cni/cnitool
