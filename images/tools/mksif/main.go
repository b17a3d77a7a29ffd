// Command mksif wraps a squashfs into a Singularity image: mksif SQUASHFS SIF. It does what
// `apptainer build` would do last, but on machines without Apptainer and without a build sandbox.
// The same squashfs gives the same image, byte for byte.
package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/apptainer/sif/v2/pkg/sif"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: mksif SQUASHFS SIF")
		os.Exit(2)
	}
	if err := wrap(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "mksif:", err)
		os.Exit(1)
	}
}

func wrap(squashfs, image string) error {
	content, err := os.Open(squashfs)
	if err != nil {
		return err
	}
	defer content.Close()

	system, err := sif.NewDescriptorInput(sif.DataPartition, content,
		sif.OptObjectName("root"),
		sif.OptPartitionMetadata(sif.FsSquash, sif.PartPrimSys, runtime.GOARCH))
	if err != nil {
		return fmt.Errorf("describe %s: %w", squashfs, err)
	}
	file, err := sif.CreateContainerAtPath(image,
		sif.OptCreateDeterministic(),
		sif.OptCreateWithLaunchScript("#!/usr/bin/env run-singularity\n"),
		sif.OptCreateWithDescriptors(system))
	if err != nil {
		return fmt.Errorf("write %s: %w", image, err)
	}
	return file.UnloadContainer()
}
